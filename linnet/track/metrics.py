"""Rows in a file: `metrics.jsonl` and `samples.jsonl` of a run.

What: an append-only file of JSON lines, one row for each logged step, evaluation or sample.
Why:  the numbers of a run must outlive every crash, and any other program must be able to read them.
How:  a row is one `write` to a file opened for appending, so a killed process leaves whole rows and at most
      one torn last line. `sync` forces the rows to the disk; the loop calls it before a checkpoint counts,
      so that a checkpoint never knows a step that the rows do not, and notes the file's `size` in it. After a
      crash `cut_back` removes what came later; the resumed steps then write it again.

A number that is not finite is written as `null`: NaN and Infinity are not JSON, and strict readers
(browsers, jq, pandas) refuse the whole file over one of them. `read_metrics` gives NaN for it.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from linnet.errors import DiskError, LinnetError
from linnet.files import disk_errors, operations

Row = dict[str, Any]

_APPEND = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)


class RowFile:
    """A file of JSON lines, open for appending. Rows are on their way to the disk when `append` returns.

    >>> with RowFile(Path("runs/mine/metrics.jsonl")) as metrics:
    ...     metrics.append({"step": 1, "loss": 4.2})
    ...     metrics.sync()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder_synced = False
        with disk_errors(path):
            self._file = os.open(path, _APPEND | os.O_CREAT, 0o666)
            mend_last_line(self._file)

    @property
    def size(self) -> int:
        """Bytes of all rows so far."""
        return os.fstat(self._file).st_size

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. A failing write leaves no half row behind; raises DiskError."""
        line = (json.dumps(_finite(row), ensure_ascii=False) + "\n").encode(errors="replace")
        before = self.size
        rest = memoryview(line)
        try:
            with disk_errors(self.path, needed=before + len(line)):
                while rest:  # a nearly full disk takes a part and reports the error next time
                    rest = rest[operations.write(self._file, rest) :]
        except (DiskError, OSError):
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def sync(self) -> None:
        """Return when all rows, and the file's entry in its folder, are on the disk."""
        with disk_errors(self.path):
            operations.fsync(self._file)
            if not self._folder_synced:
                operations.sync(self.path.parent)
                self._folder_synced = True

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cut_back(path: Path, size: int) -> None:
    """Cut the rows back to the first `size` bytes, those that a checkpoint knows of (see `RowFile.size`).

    It is one truncation: the file holds the old rows or the kept ones, never something between. A torn last line
    goes, too. No file: nothing to do.
    """
    if not path.exists():
        return
    with disk_errors(path):
        file = os.open(path, _APPEND)
        try:
            os.ftruncate(file, min(size, os.fstat(file).st_size))
            mend_last_line(file)
            operations.fsync(file)
        finally:
            os.close(file)


def read_rows(path: Path) -> list[Row]:
    """All whole rows; a torn last line and lines that are not JSON are left out. No file: no rows."""
    return scan(path)[0]


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`; a number that was not finite comes back as NaN."""
    return scan_metrics(path)[0]


def scan_metrics(path: Path) -> tuple[list[Row], list[int]]:
    """As `read_metrics`, with the numbers (from 1) of damaged lines."""
    rows, damaged = scan(path)
    for row in rows:
        if None in row.values():
            row.update({key: math.nan for key, value in row.items() if value is None})
    return rows, damaged


def scan(path: Path) -> tuple[list[Row], list[int]]:
    """The whole rows and the numbers (from 1) of damaged lines. A torn last line is not damage: it is what
    a kill leaves, or what a process is writing right now."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise LinnetError(
            f"{path} cannot be read ({error.strerror}): check what it is and its rights"
        ) from error
    if (whole_rows := _rows_at_once(content)) is not None:
        return whole_rows, []
    rows: list[Row] = []
    damaged: list[int] = []
    for number, (row, whole, _) in enumerate(_lines(content), start=1):
        if row is not None:
            rows.append(row)
        elif whole:
            damaged.append(number)
    return rows, damaged


def rows_from(path: Path, start: int, *, most: int = 4_000_000) -> tuple[list[Row], int]:
    """The whole rows from the byte `start` on, at most `most` bytes of them, and where the next call starts.

    For a program that follows a run: it sees each row once. No file, or nothing new: no rows.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(most)
    except FileNotFoundError:
        return [], start
    whole = content[: content.rfind(b"\n") + 1]
    return [row for row, _, _ in _lines(whole) if row is not None], start + len(whole)


def mend_last_line(file: int) -> None:
    """Make the open file end with a newline: a whole last row gets one, a torn one is cut off.

    Without it the next row would be glued to the torn one, and both would be lost.
    """
    size = os.fstat(file).st_size
    start, tail = size, b""
    while start and b"\n" not in tail:  # from the end, so that a long file costs one small read
        step = min(64 * 1024, start)
        start -= step
        os.lseek(file, start, os.SEEK_SET)
        tail = os.read(file, step) + tail
    last = tail.rfind(b"\n") + 1
    if last == len(tail):
        return
    if _row(tail[last:]) is not None:
        os.write(file, b"\n")
    else:
        os.ftruncate(file, start + last)


def _rows_at_once(content: bytes) -> list[Row] | None:
    """All rows by one call of the parser, in half the time; None where a line is torn, empty or damaged."""
    *lines, rest = content.split(b"\n")
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return None
    # A comma or a bracket in a damaged line can join or divide rows: then they are not as many as lines.
    whole = not rest and len(rows) == len(lines) and all(type(row) is dict for row in rows)
    return rows if whole else None


def _lines(content: bytes) -> Iterator[tuple[Row | None, bool, int]]:
    """(row or None, whether the line has its newline, offset of its end) for each line that is not empty."""
    start = 0
    while start < len(content):
        newline = content.find(b"\n", start)
        end = len(content) if newline < 0 else newline + 1
        line = content[start:end]
        if line.strip():
            yield _row(line), newline >= 0, end
        start = end


def _row(line: bytes) -> Row | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also what is not UTF-8
        return None
    return value if isinstance(value, dict) else None


def _finite(value: Any) -> Any:
    """The value with null for every NaN and infinity in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
