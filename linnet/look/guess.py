"""What is this file? Its kind, encoding and columns, which format fits, and why.

What   `guess_file(path)`.
Why    "What must my txt look like?" is the most asked question about fine-tuning. The file itself can be asked.
How    The first megabyte is looked at; formats.py says whether its rows can be used. linefacts.py judges plain text.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from linnet.config import DataConfig, DataFormat
from linnet.data.formats import RowFormat, make_row_format
from linnet.data.inputs import LOOKED_AT, SPAN
from linnet.data.reading.compressed import is_compressed, read_blocks
from linnet.data.reading.encoding import guess_encoding, guess_utf16
from linnet.data.reading.records import RecordReader, file_kind, spans_of
from linnet.data.reading.text import HEAD, SAMPLE, read_text
from linnet.data.rows import BadRecord, Unusable
from linnet.errors import LinnetError
from linnet.look.linefacts import judge_lines

LOOKED_AT_BYTES = 1 << 20
LONG_TEXT = 2000  # characters: rows with a text column that are longer on average are documents, not lines
EXAMPLE = 60  # characters of an example value

KINDS = {
    "txt": "plain text",
    "jsonl": "JSON lines",
    "json": "a JSON array",
    "csv": "a table with commas (CSV)",
    "tsv": "a table with tabs (TSV)",
    "parquet": "Parquet",
}
RECIPES: dict[str, str] = {
    "instruct": "math",
    "chat": "chat",
    "papers": "papers",
    "lines": "lines",
    "text": "text",
}


@dataclass(frozen=True)
class Column:
    """A column by the first rows: its types, the share of rows that have something in it, and a value."""

    name: str
    types: str
    filled: float
    example: str


@dataclass(frozen=True)
class Guess:
    """What a file is taken for.

    Attributes:
        format: None where nothing fits.
        why: a sentence or two.
        remedy: what has to be done to the file first; "" if nothing.
        otherwise: the command for those who know better; "" if there is no other way to see it.
    """

    path: Path
    kind: str
    encoding: str
    format: DataFormat | None
    why: str
    columns: list[Column] = field(default_factory=list)
    remedy: str = ""
    otherwise: str = ""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "path": str(self.path)}


def train_command(data_format: str, source: str) -> str:
    """`linnet train RECIPE data.source=FILE`."""
    return f"linnet train {RECIPES[data_format]} data.source={shlex.quote(source)}"


def guess_file(path: Path, *, source: str = "") -> Guess:
    """Look at the beginning of `path`, which stands for `source` (a folder or glob; "": only itself).

    Raises:
        LinnetError: it cannot be opened or unpacked, or is Parquet or CSV that cannot be read.
    """
    kind = file_kind(path)
    name = KINDS[kind] + (f", packed ({path.suffix})" if is_compressed(path) else "")
    if kind == "parquet":
        return _guess_rows(path, name, encoding="")
    encoding, remedy = _encoding(path)
    if remedy:
        return Guess(path, name if encoding else "not text", encoding, None, "", remedy=remedy)
    if kind != "txt":
        return _guess_rows(path, name, encoding=encoding)
    return _guess_text(path, name, encoding=encoding, source=source or str(path))


def _encoding(path: Path) -> tuple[str, str]:
    """The encoding's name, and what to do where it is not UTF-8."""
    head = b""
    for block in read_blocks(path):
        head += block
        if len(head) >= SAMPLE:
            break
    try:
        for _ in itertools.islice(read_text(path), 4):
            pass
    except LinnetError as error:
        return _guess_other(head), str(error)
    if head.startswith(b"\xef\xbb\xbf"):
        return "UTF-8 with a byte order mark", ""
    return "ASCII" if head.isascii() else "UTF-8", ""


def _guess_other(head: bytes) -> str:
    """The encoding of what is not UTF-8; "" for what is no text."""
    if name := guess_utf16(head[:HEAD]):
        return name
    return "" if b"\0" in head else guess_encoding(head)


# -- plain text ------------------------------------------------------------------------------------------------------


def _guess_text(path: Path, kind: str, *, encoding: str, source: str) -> Guess:
    text = "".join(itertools.islice(read_text(path), LOOKED_AT_BYTES >> 18))
    if _is_json_lines(text):
        new = path.with_name(path.name.removesuffix(path.suffix) + ".jsonl")
        remedy = (
            "Its lines are JSON objects, which plain text would learn with all their braces; name it so: "
            f"mv {shlex.quote(str(path))} {shlex.quote(str(new))}"
        )
        return Guess(path, "JSON lines named as plain text", encoding, None, "", remedy=remedy)
    lines, why = judge_lines(text)
    chosen: DataFormat = "lines" if lines else "text"
    other = "If it is running text after all" if lines else "If each line is an example of its own after all"
    return Guess(
        path,
        kind,
        encoding,
        chosen,
        why,
        otherwise=f"{other}: {train_command('text' if lines else 'lines', source)}",
    )


def _is_json_lines(text: str) -> bool:
    first = [line for line in itertools.islice(text.split("\n"), 10) if line.strip()][:3]
    try:
        return bool(first) and all(isinstance(json.loads(line), dict) for line in first)
    except ValueError:
        return False


# -- rows with columns -----------------------------------------------------------------------------------------------


def _guess_rows(path: Path, kind: str, *, encoding: str) -> Guess:
    reader = RecordReader(spans_of(path, size=SPAN)[0])
    records = list(itertools.islice(reader, 10 * LOOKED_AT))
    rows = [record.values for record in records if not isinstance(record, BadRecord)]
    columns = _columns(rows)
    if not rows:
        bad = next((record for record in records if isinstance(record, BadRecord)), None)
        why = f"Not one of its first {len(records)} rows can be read"
        why += f": {path}:{bad.line}: {bad.reason}." if bad else ": there are none."
        return Guess(path, kind, encoding, None, why)
    found = _fitting_format(rows, where=str(path))
    if isinstance(found, str):
        return Guess(path, kind, encoding, None, found, columns)
    row_format, why = found
    return Guess(path, kind, encoding, cast(DataFormat, row_format.format), why, columns)


def _fitting_format(rows: Sequence[Mapping[str, Any]], *, where: str) -> tuple[RowFormat, str] | str:
    """The first format that most rows fit, and why; or why none does."""
    complaint = ""
    candidates: tuple[DataFormat, ...] = ("chat", "papers", "instruct", "lines")
    for candidate in candidates:
        try:
            row_format = make_row_format(DataConfig(format=candidate), rows[:LOOKED_AT], where=where)
        except LinnetError as error:
            if candidate == "instruct":
                complaint = complaint or str(error)
            continue
        texts = []
        for values in rows:
            try:
                texts.append("\n".join(turn.text for turn in row_format.parse(values)))
            except Unusable as problem:
                complaint = f"{where}: data.format={candidate} fits the columns, but not the rows: {problem}."
        if 2 * len(texts) > len(rows):
            return _named(row_format, texts)
    return complaint


def _named(row_format: RowFormat, texts: Sequence[str]) -> tuple[RowFormat, str]:
    columns = row_format.columns
    listed = " and ".join(
        columns[what] for what in ("question", "answer", "article", "abstract") if what in columns
    )
    if row_format.format == "instruct":
        return row_format, f"Questions and answers in the columns {listed}; the answers are learned."
    if row_format.format == "chat":
        return (
            row_format,
            f"Conversations in the column {columns['messages']}; the assistant's turns are learned.",
        )
    if row_format.format == "papers":
        return row_format, f"Articles and their abstracts in the columns {listed}."
    mean = sum(map(len, texts)) / len(texts)
    if mean > LONG_TEXT:
        long = RowFormat("text", columns, None)
        return long, f"Documents in the column {columns['text']}, {mean:,.0f} characters on average."
    return (
        row_format,
        f"Texts in the column {columns['text']}, {mean:,.0f} characters on average, each an example.",
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    columns = []
    for name in dict.fromkeys(name for values in rows for name in values):
        values = [row.get(name) for row in rows]
        filled = [value for value in values if value not in (None, "", [], {})]
        types = ", ".join(dict.fromkeys(_type_of(value) for value in filled)) or "empty"
        example = filled[0] if filled else ""
        shown = example if isinstance(example, str) else json.dumps(example, ensure_ascii=False, default=str)
        columns.append(Column(name, types, len(filled) / len(rows), shorten(shown, EXAMPLE)))
    return columns


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return f"object ({', '.join(map(str, itertools.islice(value, 4)))})"
    if isinstance(value, list | tuple):
        return f"list of {_type_of(value[0])}" if value else "list"
    return type(value).__name__


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"
