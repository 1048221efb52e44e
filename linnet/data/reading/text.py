"""Text files as streams of decoded text; and the sentence for a file that is no UTF-8 text.

What   `read_text` streams a file, packed or not; `refuse_other_encodings` and `why_not_text` judge bytes of rows.
Why    A file of any size must be read in flat memory, and a wrong one must be named with place, reason and remedy.
How    UTF-8 with or without byte order mark; CR LF becomes LF. Every block of the file passes through `observe`, where
       the caller counts and hashes it. Places are bytes of the content, also in a packed file.
"""

from __future__ import annotations

import shlex
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Callable, Iterator
from pathlib import Path

from linnet.data.reading.compressed import ignore, is_compressed, read_blocks, unpack_command
from linnet.data.reading.encoding import guess_encoding, guess_utf16
from linnet.errors import LinnetError

HEAD = 8192  # bytes by which UTF-16 is recognised
SAMPLE = 1 << 16  # bytes by which a file's encoding is judged


def character_boundary(path: Path, offset: int) -> int:
    """The first byte at or after `offset` where a character begins; CR LF counts as one character."""
    if offset <= 0:
        return 0
    before, *after = _sample(path, offset - 1, size=5) or b"\0"
    if before == 0x0D and after[:1] == [0x0A]:
        return offset + 1
    for byte in after:
        if byte & 0xC0 != 0x80:  # not inside a UTF-8 sequence
            break
        offset += 1
    return offset


def read_text(
    path: Path, *, start: int = 0, stop: int | None = None, observe: Callable[[bytes], None] = ignore
) -> Iterator[str]:
    """The text in bytes `start` to `stop` (the end) of a file's content, in strings of about 256 KB.

    Args:
        observe: called with the bytes as they are in the file.

    Raises:
        LinnetError: not UTF-8, a NUL byte, a file that became shorter, a damaged packed file; with line or byte.
    """
    decoder = getincrementaldecoder("utf-8")()
    held_back = ""  # a CR at the end of a block, until it is known whether LF follows
    position = start
    for block in read_blocks(path, start=start, stop=stop, observe=observe):
        if b"\0" in block:
            raise _not_text(path, position + block.index(b"\0"))
        text = _decode(decoder, block, path=path, position=position)
        if position == 0:
            text = text.removeprefix("\ufeff")
        position += len(block)
        text = held_back + text
        held_back = "\r" if text.endswith("\r") else ""
        text = text[: len(text) - len(held_back)].replace("\r\n", "\n")
        if text:
            yield text
    _decode(decoder, b"", path=path, position=position)
    if held_back:
        yield held_back


def _decode(decoder: IncrementalDecoder, block: bytes, *, path: Path, position: int) -> str:
    """`block` decoded; b"" is the end, where nothing may be left over."""
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, position - pending + error.start) from error


def refuse_other_encodings(path: Path, head: bytes) -> None:
    """Raise LinnetError if the beginning of a file (64 KB) shows that it is no UTF-8 text with a few bad rows.

    It is not where it is UTF-16, or where more than 10 lines and a tenth of all are no UTF-8.
    """
    if not guess_utf16(head[:HEAD]):
        bad = sum(not _is_text(line) for line in head.split(b"\n")[:-1])
        if bad <= 10 or 10 * bad <= head.count(b"\n") or guess_encoding(head) == "UTF-8":
            return
    nul, bad_byte = head.find(b"\0"), _first_bad(head)
    raise _not_utf8(path, bad_byte) if nul < 0 and bad_byte is not None else _not_text(path, nul)


def why_not_text(row: bytes) -> str:
    """What is wrong with the bytes of a row; "" if they are UTF-8 without NUL."""
    if b"\0" in row:
        return f"byte {row.index(0)} of the row is NUL"
    bad = _first_bad(row)
    if bad is None:
        return ""
    name = guess_encoding(row[max(0, bad - 64) : bad + 64])  # 0.5 ms, for each bad row
    looks = {"": "", "UTF-8": ", though most of the row is"}.get(name, f"; it looks like {name}")
    return f"byte {bad} of the row (0x{row[bad]:02X}) is not UTF-8{looks}"


def _is_text(line: bytes) -> bool:
    return b"\0" not in line and _first_bad(line) is None


def _first_bad(data: bytes) -> int | None:
    """The first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _line_of(path: Path, offset: int) -> int:
    """Number of the line, from 1, that byte `offset` is in."""
    return 1 + sum(block.count(b"\n") for block in read_blocks(path, stop=offset)) if offset else 1


def _sample(path: Path, offset: int, *, size: int) -> bytes:
    """Up to `size` bytes from `offset`."""
    sample = b""
    for block in read_blocks(path, start=max(0, offset)):
        sample += block
        if len(sample) >= size:
            break
    return sample[:size]


def _not_text(path: Path, offset: int) -> LinnetError:
    name = guess_utf16(_sample(path, 0, size=HEAD))
    if name:
        return LinnetError(f"{path}: byte {offset} is NUL; it looks like {name}. {_convert(path, name)}")
    return LinnetError(
        f"{path}:{_line_of(path, offset)}: byte {offset} is NUL, so this is no text file; leave it out."
    )


def _not_utf8(path: Path, offset: int) -> LinnetError:
    name = guess_utf16(_sample(path, 0, size=HEAD)) or guess_encoding(
        _sample(path, offset - 2 * HEAD, size=6 * HEAD)
    )
    byte = _sample(path, offset, size=1)[0]
    where = f"{path}:{_line_of(path, offset)}: byte {offset} (0x{byte:02X}) is not UTF-8"
    if name == "UTF-8":
        return LinnetError(
            f"{where}, though the text around it is: it is damaged there. {_convert(path, name)}"
        )
    if name:
        return LinnetError(f"{where}; it looks like {name}. {_convert(path, name)}")
    return LinnetError(f"{where}, nor any other text encoding that we know; leave the file out.")


def _convert(path: Path, name: str) -> str:
    plain = path.with_suffix("") if is_compressed(path) else path
    new = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix or '.txt'}")))
    convert = f"iconv {'-c ' if name == 'UTF-8' else ''}-f {name} -t UTF-8"
    if is_compressed(path):
        return f"Convert it: {unpack_command(path)} | {convert} > {new}"
    return f"Convert it: {convert} {shlex.quote(str(path))} > {new}"
