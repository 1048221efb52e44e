"""Where rows come from: local files, folders and globs.

What   `find_files` turns a source into a list of files. How they are read: text.py (documents), records.py (rows).
Why    A folder holds more than its data, and what is taken or left out must be said.
How    Text is what has no NUL byte at its beginning; packed files (.gz, .zst) are looked into, and Parquet is known by
       its suffix.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from linnet import files
from linnet.data.reading.compressed import Damaged, ignore, is_compressed, read_blocks
from linnet.data.reading.encoding import guess_utf16
from linnet.data.reading.text import HEAD
from linnet.data.store import KIND
from linnet.errors import LinnetError


def find_files(
    source: str | list[str], *, key: str = "data.source", say: Callable[[str], None] = ignore
) -> list[Path]:
    """The files that a source names: a file, a folder (with all below it), a glob, or a list of these.

    Sorted, each file once. In a folder or glob, hidden, empty and binary files are left out (but Parquet, and text
    inside .gz and .zst, are taken), and so are the folders that we write ourselves (runs, prepared data) and Python
    environments; `say` is told.

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
    path = files.expand_home(source)
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
    """(the files among `paths` that can be read, the empty and binary ones), sorted."""
    texts: list[Path] = []
    others: list[Path] = []
    for path in sorted(paths):
        (texts if path.is_file() and _is_data(path) else others).append(path)
    return texts, others


def _is_data(path: Path) -> bool:
    head = _head(path)
    if path.suffix.lower() == ".parquet":
        return bool(head)
    if head and is_compressed(path):
        try:
            head = next(read_blocks(path), b"")[:HEAD]
        except Damaged:
            return True  # which is said when it is read
    # UTF-16 is text, too: it is kept here and refused by name when it is read.
    return bool(head) and (b"\0" not in head or bool(guess_utf16(head)))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise LinnetError(f"{path} cannot be read: {error.strerror}; check its permissions.") from error
