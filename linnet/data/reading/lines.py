"""Whole lines of a byte stream, in chunks.

What   `Lines` gives chunks of complete lines with the place where each begins; `texts_of` decodes the lines of a chunk.
Why    Work on each line in Python costs more than reading it. A chunk of 256 KB is searched for NUL, decoded and
       split at once, and only where that fails is each line looked at.
How    A line that is longer than LONGEST_LINE is passed over without holding it, so 2 GB without a line end cost 16 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from linnet.data.rows import BadRecord

LONGEST_LINE = 16 << 20  # bytes; longer is surely no row. Must be at least a block.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def too_long() -> str:
    """The reason that a row which is longer than LONGEST_LINE is set aside for."""
    return f"the row is longer than {LONGEST_LINE:,} bytes; is it data.format=text?"


class Chunk(NamedTuple):
    """Some whole lines, or None for one line that is too long; the last line of a file may lack its end."""

    data: bytes | None
    line: int
    """Number of the first of them, from 1."""
    byte: int
    """Where that begins."""


class Lines:
    """The lines of a stream of blocks.

    Attributes:
        line: number of the line behind the chunk that was worked on last, from 1.
        byte: where that line begins.
        empty: for the reader to count the lines that are no rows.
    """

    def __init__(self, blocks: Iterator[bytes], *, byte: int = 0) -> None:
        self._blocks = blocks
        self.line, self.byte, self.empty = 1, byte, 0

    def __iter__(self) -> Iterator[Chunk]:
        waiting: list[bytes] = []  # the beginning of a line whose end is not read yet
        size = 0
        passing_over = False  # that line is too long, and only its size is kept
        for block in self._blocks:
            if self.byte == size == 0 and block.startswith(BYTE_ORDER_MARK):
                self.byte, block = len(BYTE_ORDER_MARK), block[len(BYTE_ORDER_MARK) :]
            end = block.find(b"\n") + 1
            if end and (passing_over or size + end - 1 > LONGEST_LINE):
                yield from self._give(None, size + end)
                block, size, passing_over = block[end:], 0, False
                waiting.clear()
            end = block.rfind(b"\n") + 1
            if end:
                data = b"".join((*waiting, block[:end]))
                yield from self._give(data, len(data))
                block, size = block[end:], 0
                waiting.clear()
            size += len(block)
            passing_over = passing_over or size > LONGEST_LINE
            if passing_over:
                waiting.clear()
            else:
                waiting.append(block)
        if size:
            yield from self._give(None if passing_over else b"".join(waiting), size)

    def _give(self, data: bytes | None, size: int) -> Iterator[Chunk]:
        """A chunk, and the place behind it."""
        yield Chunk(data, self.line, self.byte)
        self.byte += size
        self.line += 1 if data is None else data.count(b"\n")


def row_chunks(lines: Lines) -> Iterator[BadRecord | tuple[bytes, list[bytes], int, int]]:
    """Of each chunk its bytes, its lines, number and place of the first; a line that is too long is a bad record.

    Chunks of white space are counted and left out.
    """
    for data, line, byte in lines:
        if data is None:
            yield BadRecord(too_long(), line, byte)
            continue
        rows = split_lines(data)
        if data.isspace():
            lines.empty += len(rows)
        else:
            yield data, rows, line, byte


def split_lines(data: bytes) -> list[bytes]:
    """The lines without their ends; CR before the end is kept, so the bytes are the lines' lengths + 1 each."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def texts_of(data: bytes, lines: list[bytes]) -> list[str] | None:
    """The same lines decoded, without CR at the end; None where one is not UTF-8 or holds a NUL byte."""
    if b"\0" in data:
        return None
    try:
        texts = data.decode().split("\n")[: len(lines)]
    except UnicodeDecodeError:
        return None
    return [text.removesuffix("\r") for text in texts] if b"\r" in data else texts
