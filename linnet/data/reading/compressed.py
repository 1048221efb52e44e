"""Bytes of a file as blocks, unpacked on the way where the file is .gz or .zst.

What   `read_blocks` streams a part of a file's content; `content_size` says how long the content of a packed one is.
Why    Packed files must cost no more memory than plain ones, and a megabyte that unpacks to ten gigabytes must not
       fill the disk or the day.
How    Small pieces go into the decompressor, so that even the worst piece gives at most 32 MB: 1 KB of zstd holds 256
       blocks of 128 KB, 4 KB of gzip give 4 MB. Members of gzip and frames of zstd follow each other and are read as
       one. A bomb is what has given more than 32 MB and more than 200 times its size: text packs 3 to 20 times,
       repetitive logs 100 times, bombs 1,000 times and more. Most are one from their first byte, and found before
       anything is read; in any other the same is watched all the way.
"""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from linnet.errors import LinnetError

BLOCK = 1 << 18  # bytes in a block
BOMB_BYTES = 32 << 20  # content, below which nothing is a bomb
BOMB_RATIO = 200  # content / file

_UNPACK = {".gz": "gzip -dc", ".zst": "zstd -dc"}  # the command that does it by hand
_PIECES = {".gz": 4 << 10, ".zst": 1 << 10}


class Damaged(LinnetError):
    """A packed file that ends early or is not what its suffix says; what came before it was read."""

    def __init__(self, path: Path, reason: str, *, byte: int) -> None:
        super().__init__(f"{path}: {reason} (after byte {byte:,} of its content); fetch or pack it again.")
        self.reason = reason


class _Decompressor(Protocol):
    """What zlib and zstandard have in common."""

    def decompress(self, data: bytes, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def ignore(_: object) -> None:
    """The observer, or listener, of whoever has none."""


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in _UNPACK


def unpack_command(path: Path) -> str:
    """What a user types to get the content: `cat FILE` for a plain file."""
    return f"{_UNPACK.get(path.suffix.lower(), 'cat')} {shlex.quote(str(path))}"


def read_blocks(
    path: Path, *, start: int = 0, stop: int | None = None, observe: Callable[[bytes], None] = ignore
) -> Iterator[bytes]:
    """Bytes `start` to `stop` (the end) of a file's content, in blocks of about 256 KB.

    Args:
        observe: called with the bytes as they are in the file. Of a packed file all are read, also before `start`.

    Raises:
        Damaged: a packed file that is not whole, after the blocks that could be read.
        LinnetError: a plain file that is shorter than `stop`, a compression bomb.
    """
    if not is_compressed(path):
        yield from _read_plain(path, start, stop, observe)
        return
    position = 0
    for block in _unpacked(path, observe):
        part = block[max(0, start - position) : None if stop is None else max(0, stop - position)]
        position += len(block)
        if part:
            yield part
        if stop is not None and position >= stop:
            return
    if stop is not None:
        raise _shorter(path)


def content_size(path: Path, *, observe: Callable[[bytes], None] = ignore) -> int:
    """Bytes of a file's content; a packed one is read through. Same errors as `read_blocks`."""
    if not is_compressed(path):
        return path.stat().st_size
    return sum(map(len, _unpacked(path, observe)))


def refuse_bomb(path: Path, *, packed: int, content: int) -> None:
    """Raises LinnetError where so many bytes of content cannot honestly come from so few."""
    if content > BOMB_BYTES and content > BOMB_RATIO * packed:
        raise LinnetError(
            f"{path}: {packed:,} bytes unpacked to {content:,} so far, more than {BOMB_RATIO} times as many; text "
            "does not pack so well, so this looks like a compression bomb; leave it out, or unpack it by hand."
        )


def _read_plain(
    path: Path, start: int, stop: int | None, observe: Callable[[bytes], None]
) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while stop is None or start < stop:
            block = file.read(BLOCK if stop is None else min(BLOCK, stop - start))
            if not block:
                if stop is None:
                    return
                raise _shorter(path)
            observe(block)
            start += len(block)
            yield block


def _shorter(path: Path) -> LinnetError:
    return LinnetError(f"{path} became shorter while it was read; start again when it is complete.")


def _unpacked(path: Path, observe: Callable[[bytes], None]) -> Iterator[bytes]:
    """The whole content of a packed file, in blocks of 256 KB but for the last."""
    suffix = path.suffix.lower()
    _look_ahead(path, suffix)
    waiting: list[bytes] = []
    size = done = packed = 0
    damage = ""
    stream = _Stream(suffix)
    try:
        for raw in _read_plain(path, 0, None, observe):
            for first in range(0, len(raw), _PIECES[suffix]):
                piece = raw[first : first + _PIECES[suffix]]
                packed += len(piece)
                for content in stream.feed(piece):
                    waiting.append(content)
                    size += len(content)
                refuse_bomb(path, packed=packed, content=done + size)
                if size >= BLOCK:
                    content = b"".join(waiting)
                    whole = size - size % BLOCK
                    for start in range(0, whole, BLOCK):
                        yield content[start : start + BLOCK]
                    waiting, size, done = [content[whole:]], size - whole, done + whole
        if not stream.complete:
            damage = f"the {suffix} stream ends early"
    except _BrokenStream as error:
        damage = f"the {suffix} stream is damaged ({error})"
    if waiting:
        yield b"".join(waiting)
    if damage:
        raise Damaged(path, damage, byte=done + size)


def _look_ahead(path: Path, suffix: str) -> None:
    """Refuse what is a bomb from its beginning, before millions of its rows are read."""
    stream = _Stream(suffix)
    packed = content = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECES[suffix]):
            packed += len(piece)
            try:
                content += sum(map(len, stream.feed(piece)))
            except _BrokenStream:
                return  # which is said in its place
            if content <= BOMB_RATIO * packed:
                return
            refuse_bomb(path, packed=packed, content=content)


class _BrokenStream(Exception):
    """What zlib or zstandard says about the bytes."""


class _Stream:
    """Members of gzip or frames of zstd, one after the other."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._decompressor = self._new()
        self.complete = True  # between two members

    def _new(self) -> _Decompressor:
        if self._suffix == ".gz":
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        # Windows of more than 128 MB are refused, as the command zstd does without --long.
        return zstandard.ZstdDecompressor().decompressobj(write_size=16 << 10)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The content that the next bytes of the file give, before _BrokenStream if they are damaged."""
        while piece:
            if self.complete and self._suffix == ".gz":
                piece = piece.lstrip(b"\0")  # tapes and some tools fill the end up with zeros
                if not piece:
                    return
            yield self._decompress(piece)
            self.complete = self._decompressor.eof
            if not self.complete:
                return
            piece = self._decompressor.unused_data
            self._decompressor = self._new()

    def _decompress(self, piece: bytes) -> bytes:
        try:
            return self._decompressor.decompress(piece)
        except (zlib.error, zstandard.ZstdError) as error:
            raise _BrokenStream(error) from error
