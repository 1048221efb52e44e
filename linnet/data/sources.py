"""Where rows come from: local files, folders and globs, read as streams of decoded text.

What   `find_files` turns a source into a list of files; `read_text` and `read_lines` stream one of them.
Why    A 1 GB file must not be held in memory, and a wrong file must be named with place, reason and remedy.
How    UTF-8 with or without byte order mark; CR LF becomes LF. Every block of bytes passes through `observe`, where
       the caller counts and hashes it.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Callable, Iterator
from pathlib import Path

from linnet.data.encoding import guess_encoding, guess_utf16
from linnet.data.store import KIND
from linnet.errors import LinnetError

BLOCK = 1 << 18  # bytes read at once
HEAD = 8192  # bytes that decide whether a file of a folder is text
LONGEST_LINE = 16 << 20  # characters; longer is surely no row


def _ignore(_: object) -> None:
    pass


def find_files(
    source: str | list[str], *, key: str = "data.source", say: Callable[[str], None] = _ignore
) -> list[Path]:
    """The files that a source names: a file, a folder (with all below it), a glob, or a list of these.

    Sorted, each file once. In a folder or glob, hidden, empty and binary files are left out, and so are the folders
    that we write ourselves (runs, prepared data) and Python environments; `say` is told.

    Args:
        key: the recipe's key that the source comes from, for the messages.

    Raises:
        LinnetError: nothing there, an empty file, a folder without text.
    """
    sources = [source] if isinstance(source, str) else source
    if not any(sources):
        raise LinnetError(f"{key} is not set; give a file, a folder or a glob: {key}=notes.txt")
    found: dict[Path, Path] = {}
    for one in sources:
        for path in _find(one, key, say):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _find(source: str, key: str, say: Callable[[str], None]) -> list[Path]:
    if source.startswith("hf:"):
        raise LinnetError(f"{key}={source}: data sets on the hub cannot be read yet; download the file.")
    path = Path(source).expanduser()
    if path.is_file():
        if not _head(path):
            raise LinnetError(f"{path} is empty; {key} needs a file with text.")
        return [path]
    left_out: list[str] = []
    if path.is_dir():
        what, paths = f"The folder {source}", _walk(path, left_out)
    elif glob.has_magic(source):
        what, paths = f"The glob {source}", _matches(path, left_out)
    elif path.exists():
        raise LinnetError(f"{source} is not a regular file; save it as one, since it is read more than once.")
    else:
        raise LinnetError(f"There is no {source} (from {Path.cwd()}); check the path in {key}.")
    texts, others = _texts_among(paths)
    names = _some([path.name for path in others])
    without = f"left out are {_some(sorted(left_out))}"  # known when the paths are through
    if not texts:
        empty = f"only empty or binary files ({names})" if others else "no files"
        raise LinnetError(
            f"{what} holds {empty}{f' ({without})' if left_out else ''}; {key} needs at least one text file."
        )
    if others:
        say(f"{what}: {len(others)} empty or binary files are left out ({names}).")
    if left_out:
        say(f"{what}: {without}.")
    return texts


def _walk(folder: Path, left_out: list[str]) -> Iterator[Path]:
    """All files below `folder`, without hidden ones and what `_no_source` finds.

    Links to folders are not followed, so there are no loops.
    """
    for parent, folders, names in os.walk(folder):
        reasons = {name: _no_source(Path(parent, name)) for name in folders}
        folders[:] = [name for name in folders if not reasons[name]]
        left_out += [
            f"{Path(parent, name).relative_to(folder)} ({reason})"
            for name, reason in reasons.items()
            if reason
        ]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _matches(pattern: Path, left_out: list[str]) -> Iterator[Path]:
    """The files that a glob matches, without those in a folder that `_no_source` finds below its fixed part."""
    fixed = next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))
    reasons: dict[Path, str] = {}
    for match in map(Path, glob.iglob(str(pattern), recursive=True)):  # noqa: PTH207
        below = [parent for parent in match.parents if fixed in parent.parents]
        for parent in below:
            if parent not in reasons:
                reasons[parent] = _no_source(parent)
        if match.is_file() and not any(reasons[parent] for parent in below):
            yield match
    left_out += [f"{folder} ({reason})" for folder, reason in reasons.items() if reason]


def _no_source(folder: Path) -> str:
    """Why a folder below a source is no text of the user's; "" where it may be.

    What we write changes with every start, so it would make a run refuse its own data the second time.
    """
    if folder.name.startswith("."):
        return "hidden"
    if (folder / "pyvenv.cfg").is_file():
        return "a Python environment"
    if _holds(folder / "manifest.json", "kind", KIND):
        return "prepared data"
    begun = (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir()
    # A run that is just starting has nothing but its lock.
    if ((folder / "recipe.toml").is_file() and begun) or _holds(folder / "lock", "pid"):
        return "a run"
    return ""


def _holds(path: Path, key: str, value: str = "") -> bool:
    """Whether `path` is a JSON object with `key`, and with that `value` if one is given."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and key in content and content[key] == (value or content[key])


def _texts_among(paths: Iterator[Path]) -> tuple[list[Path], list[Path]]:
    """(the text files among `paths`, the empty and binary ones), sorted."""
    texts: list[Path] = []
    others: list[Path] = []
    for path in sorted(paths):
        head = _head(path) if path.is_file() else b""
        # UTF-16 is text, too: it is kept here and refused by name when it is read.
        is_text = bool(head) and (b"\0" not in head or bool(guess_utf16(head)))
        (texts if is_text else others).append(path)
    return texts, others


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise LinnetError(f"{path} cannot be read: {error.strerror}; check its permissions.") from error


def character_boundary(path: Path, offset: int) -> int:
    """The first byte at or after `offset` where a character begins; CR LF counts as one character."""
    if offset <= 0:
        return 0
    with path.open("rb") as file:
        file.seek(offset - 1)
        before, *after = file.read(5) or b"\0"
    if before == 0x0D and after[:1] == [0x0A]:
        return offset + 1
    for byte in after:
        if byte & 0xC0 != 0x80:  # not inside a UTF-8 sequence
            break
        offset += 1
    return offset


def read_text(
    path: Path, *, start: int = 0, stop: int, observe: Callable[[bytes], None] = _ignore
) -> Iterator[str]:
    """The text in bytes `start` to `stop` of a file, in strings of up to 256 KB.

    Raises:
        LinnetError: not UTF-8, a NUL byte, a file that became shorter; with line and byte.
    """
    decoder = getincrementaldecoder("utf-8")()
    held_back = ""  # a CR at the end of a block, until it is known whether LF follows
    position = start
    with path.open("rb") as file:
        file.seek(start)
        while position < stop:
            block = file.read(min(BLOCK, stop - position))
            if not block:
                raise LinnetError(
                    f"{path} became shorter while it was read; start again when it is complete."
                )
            observe(block)
            if b"\0" in block:
                raise _not_text(path, position + block.index(b"\0"))
            text = _decode(decoder, block, path=path, position=position, final=position + len(block) == stop)
            if position == 0:
                text = text.removeprefix("\ufeff")
            position += len(block)
            text = held_back + text
            held_back = "\r" if text.endswith("\r") and position < stop else ""
            text = text[: len(text) - len(held_back)].replace("\r\n", "\n")
            if text:
                yield text


def _decode(decoder: IncrementalDecoder, block: bytes, *, path: Path, position: int, final: bool) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, position - pending + error.start) from error


def read_lines(
    path: Path, *, stop: int, observe: Callable[[bytes], None] = _ignore
) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a file, empty lines included. Same errors as `read_text`."""
    number, rest = 1, ""
    for text in read_text(path, stop=stop, observe=observe):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield number, line
            number += 1
        if len(rest) > LONGEST_LINE:
            raise LinnetError(
                f"{path}:{number}: the line is longer than {LONGEST_LINE:,} characters; is it data.format=text?"
            )
    if rest:
        yield number, rest


def _line_of(path: Path, offset: int) -> int:
    """Number of the line, from 1, that byte `offset` is in."""
    number = 1
    with path.open("rb") as file:
        while offset > 0 and (block := file.read(min(BLOCK, offset))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def _sample(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, offset - 2 * HEAD))
        return file.read(6 * HEAD)


def _not_text(path: Path, offset: int) -> LinnetError:
    name = guess_utf16(_head(path))
    if name:
        return LinnetError(f"{path}: byte {offset} is NUL; it looks like {name}. {_convert(path, name)}")
    return LinnetError(
        f"{path}:{_line_of(path, offset)}: byte {offset} is NUL, so this is no text file; leave it out."
    )


def _not_utf8(path: Path, offset: int) -> LinnetError:
    name = guess_utf16(_head(path)) or guess_encoding(_sample(path, offset))
    with path.open("rb") as file:
        file.seek(offset)
        byte = file.read(1)[0]
    where = f"{path}:{_line_of(path, offset)}: byte {offset} (0x{byte:02X}) is not UTF-8"
    if name == "UTF-8":
        return LinnetError(
            f"{where}, though the text around it is: it is damaged there. {_convert(path, name)}"
        )
    if name:
        return LinnetError(f"{where}; it looks like {name}. {_convert(path, name)}")
    return LinnetError(f"{where}, nor any other text encoding that we know; leave the file out.")


def _convert(path: Path, name: str) -> str:
    new = path.with_name(f"{path.stem}.utf8{path.suffix or '.txt'}")
    drop = "-c " if name == "UTF-8" else ""
    return f"Convert it: iconv {drop}-f {name} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
