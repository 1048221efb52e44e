"""The map of preparing: one span of a source becomes one part, a folder of tokens and of what happened to each row.

What   `map_job(job, plan, folder)` reads, parses, filters, tokenizes and windows one span and writes its part.
Why    It is a pure function of (span, plan): parts can be made in any order, by any number of processes, on other
       machines, and again after a kill, and the store's bytes are the same. What needs to see all rows (what is held
       out, duplicates) is decided in merge.py.
How    Rows go through in batches of up to 2,048, so that memory stays flat and the tokenizer can work in parallel.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from linnet import files
from linnet.data.duplicates import sketches
from linnet.data.filters import Filters
from linnet.data.formats import RowFormat
from linnet.data.inputs import open_span
from linnet.data.reading.hub_files import HubSpan
from linnet.data.reading.records import Span
from linnet.data.reading.text import read_text
from linnet.data.rows import BadRecord, Encoded, Unusable
from linnet.data.store import token_type
from linnet.data.windows import Encoder
from linnet.tokenizer import Tokenizer
from linnet.turns.template import Turn

if TYPE_CHECKING:
    from linnet.config import FiltersConfig

ROWS_AT_ONCE = 2048
CHARACTERS_AT_ONCE = 1 << 19
EXCERPT = 200  # characters of a row that is set aside or dropped

# What the merge needs to know of a row. `line` and `byte` say where it is; `tokens` are those of all its windows.
ROW = np.dtype(
    [
        ("id", "<u8"),
        ("line", "<i8"),
        ("byte", "<i8"),
        ("tokens", "<i8"),
        ("bytes", "<i8"),
        ("source_tokens", "<i8"),
        ("present_tokens", "<i8"),
        ("windows", "<i4"),
        ("shortened", "?"),
    ]
)

COUNTS = ("lines", "bytes", "tokens", "rows", "bad", "dropped", "changed")

Observe = Callable[[int], None]
"""Called with the bytes that were read since the last call."""


@dataclass(frozen=True)
class Job:
    """One span and how to read it.

    Attributes:
        row_format: None for a document, which is streamed.
        bytes: about how much there is to read, for the progress.
        max_rows: no more are read.
    """

    span: Span | HubSpan
    row_format: RowFormat | None
    bytes: int
    max_rows: int | None = None


@dataclass(frozen=True)
class MapPlan:
    """What all jobs of a build share.

    Attributes:
        tokenizer, fingerprint: its folder, which has another one the next time, and which it is.
        size: most ids of a window.
        sketched: rows get a sketch, by which near duplicates are found.
        keep: ids of rows that no filter may drop.
    """

    tokenizer: Path
    fingerprint: str
    filters: FiltersConfig
    size: int
    sketched: bool
    keep: frozenset[int]


@dataclass(frozen=True)
class ParsedRow:
    """A row that fits its format."""

    turns: list[Turn]
    id: int
    line: int
    byte: int


_known: dict[str, Tokenizer] = {}  # by fingerprint: one that was loaded is taken for all spans


def remember(tokenizer: Tokenizer) -> None:
    """Map with this one in this process; reading it again would take 0.1 s."""
    _known.clear()
    _known[tokenizer.fingerprint] = tokenizer


def _tokenizer(plan: MapPlan) -> Tokenizer:
    if plan.fingerprint not in _known:
        remember(Tokenizer.load(plan.tokenizer))
    return _known[plan.fingerprint]


def map_job(job: Job, plan: MapPlan, folder: Path, *, observe: Observe) -> dict[str, Any]:
    """Write the part of `job` into `folder`, whole or not at all; returns its counts."""
    with files.new_folder(folder, durable=False) as new:
        with PartWriter(new, _tokenizer(plan)) as part:
            if job.row_format is None:
                _map_document(job, part, observe=observe)
            else:
                _map_rows(job, plan, part, observe=observe)
        return part.finish()


def _map_document(job: Job, part: PartWriter, *, observe: Observe) -> None:
    span = job.span
    assert isinstance(span, Span)
    texts = read_text(span.path, start=span.start, stop=span.stop, observe=lambda block: observe(len(block)))
    for ids in part.tokenizer.stream_flat(part.counted(texts)):
        part.add_tokens(ids, np.ones(len(ids), np.uint8).data)


def _map_rows(job: Job, plan: MapPlan, part: PartWriter, *, observe: Observe) -> None:
    assert job.row_format is not None
    filters = Filters(plan.filters)
    encoder = Encoder(job.row_format, part.tokenizer, size=plan.size)
    for batch in _batches(read_rows(job, part, observe=observe)):
        rows: list[ParsedRow] = []
        cleaned: list[list[Turn]] = []
        if filters.idle:
            rows, cleaned = batch, [row.turns for row in batch]
        for row in batch if not filters.idle else []:
            verdict = filters(row.turns, clean_only=row.id in plan.keep)
            part.changed.update(verdict.changed)
            if verdict.dropped:
                part.drop(row, verdict.dropped)
            else:
                rows.append(row)
                cleaned.append(verdict.turns)
        if rows:
            part.add_rows(rows, cleaned, encoder(cleaned))
            if plan.sketched:
                part.sketches.append(sketches(["\n".join(turn.text for turn in turns) for turns in cleaned]))


def read_rows(job: Job, part: PartWriter | None, *, observe: Observe) -> Iterator[ParsedRow]:
    """The rows of a span that fit its format; the others are told to `part`."""
    assert job.row_format is not None
    reader = open_span(job.span, observe=observe)
    parse = job.row_format.parse
    found = 0
    for record in reader:
        if found == job.max_rows:
            break
        if isinstance(record, BadRecord):
            if part:
                part.set_aside(record, excerpt="")
            continue
        try:
            turns = parse(record.values)
        except Unusable as problem:
            if part:
                part.set_aside(
                    BadRecord(str(problem), record.line, record.byte), excerpt=_excerpt(record.values)
                )
            continue
        if turns:
            found += 1
            yield ParsedRow(turns, row_id(turns), record.line, record.byte)
        elif part:
            part.dropped[EMPTY] += 1
    if part:
        part.lines = reader.lines
        if reader.empty:
            part.dropped[EMPTY] += reader.empty


EMPTY = "empty line"


def row_id(turns: Sequence[Turn]) -> int:
    """A hash of what a row says: its name in data.drop and data.keep, and what decides whether it is held out.

    >>> f"{row_id([Turn('text', 'hello')]):016x}"
    'HASH'
    """
    if len(turns) == 1 and turns[0].role == "text":
        content = turns[0].text
    else:
        content = "\x1e".join(part for turn in turns for part in turn)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def _excerpt(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, default=str)[:EXCERPT]


def _batches(rows: Iterable[ParsedRow]) -> Iterator[list[ParsedRow]]:
    """Rows in lists that are worth a parallel call: up to 2,048 of them or half a million characters."""
    batch: list[ParsedRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(turn.text) for turn in row.turns)
        if len(batch) == ROWS_AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class PartWriter:
    """Write one part: tokens.bin, learn.bin, lengths.bin (ids of each window), rows.bin, and what was left out.

    Use it in a `with` block, then `finish`. A file that would be empty is not there: 160 novels are 160 parts.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self._type = token_type(tokenizer.vocab_size)
        self._files: dict[str, files.Writer] = {}
        self._open = ExitStack()
        self.lines = 0
        self.bytes = 0
        self.tokens = 0
        self.rows = 0
        self.bad = 0
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.sketches: list[Any] = []

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *reason: Any) -> None:
        self._open.__exit__(*reason)

    def _write(self, name: str, data: bytes | memoryview) -> None:
        if name not in self._files:
            self._files[name] = self._open.enter_context(files.Writer(self.folder / name, durable=False))
        self._files[name].write(data)

    def counted(self, texts: Iterable[str]) -> Iterator[str]:
        """`texts`, while their bytes are counted."""
        for text in texts:
            self.bytes += len(text) if text.isascii() else len(text.encode())
            yield text

    def add_tokens(self, ids: Sequence[int] | npt.NDArray[Any], learn: bytes | memoryview) -> None:
        """Append ids with a flag for each."""
        self._write("tokens.bin", np.asarray(ids, self._type).data)
        self._write("learn.bin", learn)
        self.tokens += len(ids)

    def add_rows(
        self, rows: Sequence[ParsedRow], turns: Sequence[Sequence[Turn]], encoded: Sequence[Encoded]
    ) -> None:
        """Append the windows of some rows, and what they were made from."""
        table = np.empty(len(rows), ROW)
        for name in ("id", "line", "byte"):
            table[name] = [getattr(row, name) for row in rows]
        for name in ("source_tokens", "present_tokens", "shortened"):
            table[name] = [getattr(one, name) for one in encoded]
        table["windows"] = [len(one.windows) for one in encoded]
        table["tokens"] = [sum(len(window.ids) for window in one.windows) for one in encoded]
        table["bytes"] = [sum(len(turn.text.encode()) for turn in row) for row in turns]
        self._write("rows.bin", table.tobytes())
        windows = [window for one in encoded for window in one.windows]
        self._write("lengths.bin", np.array([len(w.ids) for w in windows], "<i8").tobytes())
        if windows:
            learn = np.concatenate([window.learn for window in windows])
            self.add_tokens(np.concatenate([window.ids for window in windows]), learn.data)
        self.rows += len(rows)

    def drop(self, row: ParsedRow, rule: str) -> None:
        """Note a row that a filter drops."""
        self.dropped[rule] += 1
        text = " ".join(turn.text for turn in row.turns)[:EXCERPT]
        self._note("dropped.jsonl", id=f"{row.id:016x}", rule=rule, line=row.line, byte=row.byte, text=text)

    def set_aside(self, bad: BadRecord, *, excerpt: str) -> None:
        """Note a row that cannot be used."""
        self.bad += 1
        self._note("quarantine.jsonl", line=bad.line, byte=bad.byte, reason=bad.reason, text=excerpt)

    def _note(self, name: str, **entry: Any) -> None:
        # Escaped, since an excerpt may hold half a character (a lone surrogate), which UTF-8 has no bytes for.
        self._write(name, json.dumps(entry).encode() + b"\n")

    def finish(self) -> dict[str, Any]:
        """Write the sketches and the part's manifest, after the block; returns its counts."""
        hashes = {name: writer.sha256 for name, writer in self._files.items()}
        if self.sketches:
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(self.sketches))
            files.write_file(self.folder / "sketches.npy", [buffer.getbuffer()])
        counts = {name: getattr(self, name) for name in COUNTS}
        files.write_manifest(self.folder, extra=counts, hashes=hashes)
        return counts
