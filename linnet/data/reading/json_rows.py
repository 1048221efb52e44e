"""Rows of JSON: one object a line (.jsonl), or the objects of one array or of a sequence (.json).

What   `json_object` parses one row, `jsonl_rows` reads lines, `JsonRows` finds the rows in a .json file.
Why    A parser that reads a whole array needs all of it in memory, and stops at the first bad row.
How    orjson parses; it refuses what JSON does not have or text cannot be: NaN and Infinity, numbers beyond 1e308,
       halves of surrogate pairs, bytes that are not UTF-8, more than 1,024 levels. Integers beyond 64 bits become
       floats, and of equal keys the last counts. In a .json file only brackets and strings are looked at to find where
       a row ends, so a bad row does not hide the next. Where the brackets of a row do not match, the next row is
       looked for by the name of the first column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from linnet.data.reading import lines as lines_module
from linnet.data.reading.lines import BYTE_ORDER_MARK, Lines, row_chunks, too_long
from linnet.data.reading.text import why_not_text
from linnet.data.rows import BadRecord, Record

_NAMES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false"}

# Up to the next bracket that is not in a string. A string has no line end in it, so one whose quote is missing ends
# with its line.
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+(?:"|\\?(?=\n)))*+([\[\]{}])')
_BETWEEN = re.compile(rb"[ \t\r\n,]*")
_NO_OBJECT = re.compile(rb'"(?:[^"\\\n]++|\\[^\n])*+"?|[^,\n\]{]+|.', re.DOTALL)
_FIRST_KEY = re.compile(rb'\{\s*("[^"\n]{1,100}")\s*:')
_CLOSES = {ord("{"): ord("}"), ord("["): ord("]")}


def json_object(row: bytes) -> dict[str, Any] | str:
    """The object that a row is, or the reason why it is none."""
    try:
        values = orjson.loads(row)
    except orjson.JSONDecodeError as error:
        return why_not_text(row) or f"not valid JSON: {error.msg} (character {error.pos + 1} of the row)"
    if type(values) is dict:
        return values
    return f"{_NAMES.get(type(values), 'null')} where an object with columns is needed"


def jsonl_rows(lines: Lines) -> Iterator[Record | BadRecord]:
    """The objects of a file that has one a line."""
    loads, new = orjson.loads, tuple.__new__  # four times as fast as Record(...)
    for chunk in row_chunks(lines):
        if isinstance(chunk, BadRecord):
            yield chunk
            continue
        _, rows, line, byte = chunk
        for row in rows:
            try:
                values = loads(row)
            except orjson.JSONDecodeError:
                values = None
            if type(values) is dict:
                yield new(Record, (values, line, byte))
            elif not row or row.isspace():
                lines.empty += 1
            else:
                yield BadRecord(str(json_object(row)), line, byte)
            line += 1
            byte += len(row) + 1


class JsonRows:
    """The rows of a .json file, with no more of it in memory than one row and a block.

    Attributes:
        line: from 1, where the next row begins.
        byte: the same place in the content.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.line, self.byte = 1, 0
        self._blocks = blocks
        self._buffer, self._at = b"", 0  # what is read, and how far it is done with
        self._ended = False
        self._row_begins: re.Pattern[bytes] | None = None

    def __iter__(self) -> Iterator[Record | BadRecord]:
        self._read_more(len(BYTE_ORDER_MARK))
        if self._buffer.startswith(BYTE_ORDER_MARK):
            self._pass(len(BYTE_ORDER_MARK))
        is_array = self._pass_between() and self._next() == ord("[")
        if is_array:
            self._pass(1)
        while self._pass_between():
            if is_array and self._next() == ord("]"):
                self._pass(1)
                if self._pass_between():
                    yield BadRecord("something follows the end of the array", self.line, self.byte)
                return
            row = self._row() if self._next() in _CLOSES else self._no_object()
            yield row
            is_array = is_array and not (self._ended and self._left() == 0 and type(row) is BadRecord)
        if is_array:
            yield BadRecord("the file ends before its array does", self.line, self.byte)

    # -- the buffer ------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        return self._buffer[self._at]

    def _left(self) -> int:
        return len(self._buffer) - self._at

    def _read_more(self, size: int) -> bool:
        """Get at least `size` bytes more, or all there are; False if there are none."""
        blocks = [self._buffer[self._at :]]
        while size > 0 and not self._ended:
            block = next(self._blocks, b"")
            self._ended = not block
            blocks.append(block)
            size -= len(block)
        self._buffer, self._at = b"".join(blocks), 0
        return len(self._buffer) > len(blocks[0])

    def _pass(self, size: int) -> None:
        """Be done with some bytes."""
        self.line += self._buffer.count(b"\n", self._at, self._at + size)
        self.byte += size
        self._at += size

    def _pass_between(self) -> bool:
        """Pass commas and white space; False if nothing else follows."""
        while True:
            self._pass(len(_match(_BETWEEN, self._buffer, self._at)))
            if self._left() or not self._read_more(1):
                return self._left() > 0

    # -- rows ------------------------------------------------------------------------------------------------------

    def _row(self) -> Record | BadRecord:
        """What begins with a bracket."""
        line, byte = self.line, self.byte
        size = self._size_of_row()
        if isinstance(size, str):
            self._pass_to_next_row()
            return BadRecord(size, line, byte)
        row = self._buffer[self._at : self._at + size]
        self._pass(size)
        values = json_object(row)
        if isinstance(values, str):
            return BadRecord(values, line, byte)
        self._row_begins = self._row_begins or _beginning(row)
        return Record(values, line, byte)

    def _size_of_row(self) -> int | str:
        """Bytes up to the bracket that closes the first one, or why it is not known."""
        closing = bytearray()
        size = 0
        while size <= lines_module.LONGEST_LINE:
            match = _BRACKET.match(self._buffer, self._at + size)
            if not match:
                if self._left() > lines_module.LONGEST_LINE:
                    break
                # What is not understood yet doubles, so that a long string is not searched again with every block.
                if not self._read_more(max(1, self._left() - size)):
                    return "the file ends inside the row"
                continue
            size = match.end() - self._at
            bracket = self._buffer[match.end() - 1]
            if bracket in _CLOSES:
                closing.append(_CLOSES[bracket])
            elif bracket != closing.pop():
                return "the brackets of the row do not match"
            elif not closing and size <= lines_module.LONGEST_LINE:
                return size
            elif not closing:
                break
        return too_long()

    def _pass_to_next_row(self) -> None:
        """Pass a row whose end is not known, up to where the name of the first column stands as rows begin."""
        begins = self._row_begins or _beginning(self._buffer[self._at : self._at + 256])
        self._pass(1)
        while True:
            if begins and (found := begins.search(self._buffer, self._at)):
                return self._pass(found.start() - self._at)
            self._pass(max(0, self._left() - 256))  # a beginning may be cut in two
            if not self._read_more(1):
                return self._pass(self._left())

    def _no_object(self) -> BadRecord:
        """What does not begin with a bracket, up to where a row may begin."""
        while True:
            size = len(_match(_NO_OBJECT, self._buffer, self._at))
            whole = size < self._left() or self._left() > lines_module.LONGEST_LINE
            if whole or not self._read_more(self._left()):
                break
        line, byte = self.line, self.byte
        reason = str(json_object(self._buffer[self._at : self._at + size]))
        self._pass(size)
        return BadRecord(reason, line, byte)


def _match(pattern: re.Pattern[bytes], data: bytes, at: int) -> bytes:
    found = pattern.match(data, at)
    return found[0] if found else b""


def _beginning(row: bytes) -> re.Pattern[bytes] | None:
    """How the rows begin: with the name of the first column of this one."""
    found = _FIRST_KEY.match(row)
    return re.compile(rb"\{\s*" + re.escape(found[1]) + rb"\s*:") if found else None
