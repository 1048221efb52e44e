"""Rows of tables: .csv, .tsv and Parquet.

What   `csv_rows` reads text with a header line, `parquet_rows` some row groups of a Parquet file.
Why    A quote that is never closed must not swallow the rest of a file, nor one bad value a batch.
How    Python's csv, strict: quotes are doubled inside quotes, and nothing follows a closing quote but the separator. A
       row that cannot be read is one line; reading goes on with the next. A .csv is separated by comma, semicolon or
       tab, whichever the header has most of. In a .tsv, a line with stray quotes is taken as it stands. Bytes that are
       not UTF-8 spoil their row and no other. Parquet is read in batches of about 8 MB.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from linnet.data.reading import lines as lines_module
from linnet.data.reading.compressed import refuse_bomb
from linnet.data.reading.lines import Lines, split_lines, texts_of, too_long
from linnet.data.reading.text import why_not_text
from linnet.data.rows import BadRecord, Record
from linnet.errors import LinnetError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 8 << 20  # bytes of Parquet, decoded, at once
ROWS_AT_ONCE = 1024  # of it, at most


class _Line(NamedTuple):
    text: str
    """With its end; what is not UTF-8 is escaped as surrogates."""
    line: int
    byte: int
    reason: str
    """Why it cannot be part of a row."""


class _TooLong(Exception):
    pass


def csv_rows(lines: Lines, *, path: Path) -> Iterator[Record | BadRecord]:
    """The rows below the header of a table; all values are strings.

    Raises:
        LinnetError: the header cannot be read.
    """
    tabs = Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix == ".tsv"
    feed = _Feed(_lines(lines))
    first = feed.take()
    while first and not first.reason and not first.text.strip():
        lines.empty += 1
        feed.taken.clear()
        first = feed.take()
    if not first:
        return
    feed.give_back(0)
    delimiter = "\t" if tabs else max(",;\t", key=first.text.count)
    csv.field_size_limit(max(csv.field_size_limit(), lines_module.LONGEST_LINE))
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header = _header(reader, feed, path)
    while True:
        feed.taken.clear()
        try:
            fields, reason = next(reader), ""
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            fields, reason = [], too_long() if isinstance(error, _TooLong) else f"not valid CSV: {error}"
            feed.give_back(1)
            as_it_stands = feed.taken[0].text.rstrip("\n").split("\t")
            if tabs and len(as_it_stands) == len(header):
                fields, reason = as_it_stands, ""
        begin = feed.taken[0]
        if not reason and len(feed.taken) == 1 and not begin.text.strip():
            lines.empty += 1
            continue
        reason = next((line.reason for line in feed.taken if line.reason), reason)
        if not reason and len(fields) != len(header):
            reason = f"{len(fields)} fields where the header has {len(header)}"
        if reason:
            yield BadRecord(reason, begin.line, begin.byte)
        else:
            yield Record(dict(zip(header, fields, strict=True)), begin.line, begin.byte)


def _header(reader: Iterator[list[str]], feed: _Feed, path: Path) -> list[str]:
    feed.taken.clear()
    try:
        header = [name.strip() for name in next(reader)]
        reason = next((line.reason for line in feed.taken if line.reason), "")
    except (csv.Error, _TooLong, StopIteration) as error:
        reason = str(error) or too_long()
    if reason:
        raise LinnetError(f"{path}:1: the header line cannot be read ({reason}); it must name the columns.")
    return header


class _Feed:
    """Hands lines to csv.reader, remembers those of the row it is in, and takes lines back."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self._again: deque[_Line] = deque()
        self.taken: list[_Line] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self.take()
        if not line:
            raise StopIteration
        if line.byte - self.taken[0].byte + len(line.text) > lines_module.LONGEST_LINE or not line.text:
            raise _TooLong
        return line.text

    def take(self) -> _Line | None:
        """The next line, None at the end."""
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line:
            self.taken.append(line)
        return line

    def give_back(self, keep: int) -> None:
        """Take back all lines of the row but the first `keep`."""
        self._again.extendleft(reversed(self.taken[keep:]))
        del self.taken[keep:]


def _lines(lines: Lines) -> Iterator[_Line]:
    for data, number, byte in lines:
        if data is None:
            yield _Line("", number, byte, too_long())
            continue
        raw = split_lines(data)
        texts = texts_of(data, raw)
        for index, row in enumerate(raw):
            reason = "" if texts else why_not_text(row)
            text = texts[index] if texts else row.removesuffix(b"\r").decode(errors="surrogateescape")
            yield _Line(text + "\n", number + index, byte, reason)
            byte += len(row) + 1


def parquet_groups(path: Path) -> list[int]:
    """Bytes of each row group; none if it is no Parquet file, which is said when it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError, ValueError):
        return []
    return [_bytes_of(metadata.row_group(group))[0] for group in range(metadata.num_row_groups)]


def _bytes_of(group: Any) -> tuple[int, int]:
    """(bytes in the file, bytes of content) of a row group."""
    columns = [group.column(index) for index in range(group.num_columns)]
    return sum(c.total_compressed_size for c in columns), sum(c.total_uncompressed_size for c in columns)


def parquet_rows(
    path: Path, start: int, stop: int, *, observe: Callable[[int], None]
) -> Iterator[Record | BadRecord]:
    """The rows of row groups `start` to `stop`; `line` is the row's number from 1, `byte` is 0.

    Raises:
        LinnetError: a compression bomb.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield BadRecord(f"not a whole Parquet file: {_first_line(error)}", 1, 0)
        return
    row = 0
    with file:
        for group in range(start, stop):
            metadata = file.metadata.row_group(group)
            packed, content = _bytes_of(metadata)
            refuse_bomb(path, packed=packed, content=content)
            rows = metadata.num_rows
            size = max(1, min(ROWS_AT_ONCE, BATCH * rows // max(1, content)))
            end, reason = row + rows, ""
            try:
                for batch in file.iter_batches(batch_size=size, row_groups=[group], use_threads=False):
                    for values in _values(batch):
                        row += 1
                        yield (
                            BadRecord(values, row, 0) if isinstance(values, str) else Record(values, row, 0)
                        )
                    observe(packed * batch.num_rows // rows)
            except (pa.ArrowException, OSError, ValueError) as error:
                reason = f"this part of the Parquet file is damaged: {_first_line(error)}"
            # Each lost row counts, so that data.max_bad notices half a file that is missing.
            yield from (BadRecord(reason, number, 0) for number in range(row + 1, end + 1))
            row = end


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch, or why one cannot be read."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield why_not_text(error.object)
            except (ValueError, OverflowError) as error:
                yield f"a value cannot be read: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
