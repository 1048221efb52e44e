"""Rows of a local file, whatever its type: columns, line and byte of each, and the bad ones set aside with a reason.

What   `file_kind` tells the type by the name, `spans_of` cuts a file for several workers, `RecordReader` reads a span.
Why    One bad row in a million must cost that row, and be found again; and no file may need more memory than its
       longest row.
How    text.py, json_rows.py and tables.py know the types, compressed.py unpacks. A file that is not UTF-8 as a whole is
       refused by name: it needs one command, not a thousand bad rows. Rows that hold nothing are counted as empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from linnet.data.reading.compressed import Damaged, is_compressed, read_blocks
from linnet.data.reading.json_rows import JsonRows, jsonl_rows
from linnet.data.reading.lines import Lines, row_chunks, texts_of
from linnet.data.reading.tables import csv_rows, parquet_groups, parquet_rows
from linnet.data.reading.text import SAMPLE, refuse_other_encodings, why_not_text
from linnet.data.rows import BadRecord, Record
from linnet.errors import LinnetError

Kind = Literal["txt", "jsonl", "json", "csv", "tsv", "parquet"]
_SUFFIXES = {"ndjson": "jsonl", "pq": "parquet"}


class Span(NamedTuple):
    """A part of a file: bytes of .txt and .jsonl, row groups of Parquet; (0, size) of what cannot be cut."""

    path: Path
    start: int
    stop: int


def file_kind(path: Path) -> Kind:
    """The type by the suffix, that before .gz or .zst if it has one; text where it is unknown."""
    plain = path.with_suffix("") if is_compressed(path) else path
    suffix = plain.suffix.lower().removeprefix(".")
    suffix = _SUFFIXES.get(suffix, suffix)
    return cast(Kind, suffix) if suffix in get_args(Kind) else "txt"


def spans_of(path: Path, *, size: int) -> list[Span]:
    """Parts of at least `size` bytes that together are the file, in order; at least one.

    Lines are not cut, nor are row groups. Of .csv, .tsv, .json and packed files there is one part.
    """
    kind = file_kind(path)
    if kind == "parquet" and not is_compressed(path):
        return _spans_of_groups(path, parquet_groups(path), size)
    stop = path.stat().st_size
    edges = [0]
    if kind in ("txt", "jsonl") and not is_compressed(path):
        while edges[-1] + size < stop:
            edges.append(_line_end(path, edges[-1] + size, stop))
    if edges[-1] < stop or len(edges) == 1:
        edges.append(stop)
    return [Span(path, first, last) for first, last in pairwise(edges)]


def _line_end(path: Path, offset: int, stop: int) -> int:
    """Behind the first line end at or after the byte before `offset`."""
    position = offset - 1
    for block in read_blocks(path, start=position, stop=stop):
        if (found := block.find(b"\n")) >= 0:
            return position + found + 1
        position += len(block)
    return stop


def _spans_of_groups(path: Path, groups: list[int], size: int) -> list[Span]:
    spans: list[Span] = []
    start = taken = 0
    for number, group in enumerate(groups, 1):
        taken += group
        if taken >= size or number == len(groups):
            spans.append(Span(path, start, number))
            start, taken = number, 0
    return spans or [Span(path, 0, 0)]


class RecordReader:
    """Iterates over the rows of a span, once.

    Args:
        observe: called with the number of bytes of the file that were read since the last call.

    Attributes:
        lines: line ends (rows of Parquet) passed so far; at the end those of the span.
        empty: empty lines passed so far, which are no rows.

    Raises:
        LinnetError: while iterating: the file is not UTF-8 as a whole, became shorter, is a compression bomb; the
            header of a table cannot be read.
    """

    def __init__(self, span: Span, *, observe: Callable[[int], None] = lambda count: None) -> None:
        self.span, self._observe = span, observe
        self.kind = file_kind(span.path)
        self._rows = 0
        self._lines = Lines(self._blocks(), byte=span.start)
        self._json = JsonRows(self._blocks())

    @property
    def lines(self) -> int:
        if self.kind == "parquet":
            return self._rows
        return (self._json if self.kind == "json" else self._lines).line - 1

    @property
    def empty(self) -> int:
        return self._lines.empty

    def __iter__(self) -> Iterator[Record | BadRecord]:
        if self.kind == "parquet":
            yield from self._parquet()
            return
        try:
            if self.kind == "jsonl":
                yield from jsonl_rows(self._lines)
            elif self.kind == "json":
                yield from self._json
            elif self.kind == "txt":
                yield from _text_rows(self._lines)
            else:
                yield from csv_rows(self._lines, path=self.span.path)
        except Damaged as damage:
            place = self._json if self.kind == "json" else self._lines
            yield BadRecord(f"{damage.reason}; nothing behind it can be read", place.line, place.byte)

    def _blocks(self) -> Iterator[bytes]:
        path, start, stop = self.span
        whole = is_compressed(path)  # `stop` is its packed size
        blocks = read_blocks(
            path,
            start=start,
            stop=None if whole else stop,
            observe=lambda block: self._observe(len(block)),
        )
        if start == 0 and (first := next(blocks, b"")):
            refuse_other_encodings(path, first[:SAMPLE])
            blocks = chain([first], blocks)
        yield from blocks

    def _parquet(self) -> Iterator[Record | BadRecord]:
        path, start, stop = self.span
        if is_compressed(path):
            raise LinnetError(f"{path}: Parquet is packed inside already; unpack it first.")
        for row in parquet_rows(path, start, stop, observe=self._observe):
            self._rows = row.line
            yield row


def _text_rows(lines: Lines) -> Iterator[Record | BadRecord]:
    """Each line is a row with one column, "text"."""
    new = tuple.__new__  # four times as fast as Record(...)
    for chunk in row_chunks(lines):
        if isinstance(chunk, BadRecord):
            yield chunk
            continue
        data, rows, line, byte = chunk
        texts: Sequence[str | None] | None = texts_of(data, rows)
        if texts is None:
            texts = [_text_of(row) for row in rows]
        for row, text in zip(rows, texts, strict=True):
            if text is None:
                yield BadRecord(why_not_text(row), line, byte)
            elif not text or text.isspace():
                lines.empty += 1
            else:
                yield new(Record, ({"text": text}, line, byte))
            line += 1
            byte += len(row) + 1


def _text_of(row: bytes) -> str | None:
    texts = texts_of(row, [row])
    return texts[0] if texts else None
