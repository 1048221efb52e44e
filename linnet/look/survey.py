"""The first rows of the sources, read once more for what the token store does not hold: their text and their place.

What   `survey(inputs, data, ...)` reads up to 20,000 rows or 16 MB of text, parses and filters them.
Why    Duplicates, strange rows and what a cleaning rule changed are shown as text, with file and line.
How    The same reader, parser and filters as in preparing (data/map.py), without its tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from linnet.config import FiltersConfig
from linnet.data.filters import Filters
from linnet.data.formats import RowFormat
from linnet.data.inputs import Input, open_span, pieces_of
from linnet.data.map import row_id
from linnet.data.merge import read_ids
from linnet.data.rows import BadRecord, Record, Unusable
from linnet.look.guess import shorten
from linnet.look.report import Edit, Sample
from linnet.turns.template import Turn

if TYPE_CHECKING:
    from linnet.config import DataConfig

ROWS = 20_000
CHARACTERS = 16 << 20  # of all rows together; more than that takes too long to look at
SHOWN = 3  # rows that are shown of each kind
EXCERPT = 160  # characters of a row that is shown
AROUND = 40  # characters that are shown on each side of a change

# What people put between examples because other programs want it; here it is text like any other.
MARKS = ("<|endoftext|>", "<|startoftext|>", "<|im_start|>", "[INST]", "<s>", "</s>")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class SeenRow:
    """A row that fits its format.

    Attributes:
        id: see map.row_id.
        cleaned: the turns as the filters leave them.
        dropped: the rule that drops the row; "" keeps it. changed: rules that cleaned it.
    """

    id: int
    place: str
    turns: list[Turn]
    cleaned: list[Turn]
    dropped: str
    changed: tuple[str, ...]
    row_format: RowFormat

    @property
    def text(self) -> str:
        """What it says, as it will be learned."""
        return "\n".join(turn.text for turn in self.cleaned)

    def sample(self, why: str = "") -> Sample:
        """For the report."""
        return Sample(f"{self.id:016x}", self.place, shorten(self.text, EXCERPT), why)


@dataclass
class Survey:
    """What was seen.

    Attributes:
        whole: these are all rows.
    """

    rows: list[SeenRow] = field(default_factory=list)
    bad: list[Sample] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    whole: bool = True

    def marks(self) -> list[str]:
        """A sentence for each mark of another program that stands in the text."""
        sentences = []
        for mark in MARKS:
            if count := sum(mark in turn.text for row in self.rows for turn in row.turns):
                where = f"{mark} stands in {count:,} {'place' if count == 1 else 'places'}"
                sentences.append(
                    f"{where} and is learned as plain characters; end-of-text is put where it belongs by itself, so "
                    "leave such marks out."
                )
        return sentences

    def changed_samples(self) -> dict[str, list[Edit]]:
        """For each cleaning rule the first rows that it touched."""
        found: dict[str, list[Edit]] = {}
        for row in self.rows:
            for rule in row.changed:
                if len(found.setdefault(rule, [])) < SHOWN:
                    found[rule].append(_edit(row, rule))
        return found

    def dropped_samples(self) -> dict[str, list[Sample]]:
        """For each rule that drops rows the first of them."""
        found: dict[str, list[Sample]] = {}
        for row in self.rows:
            if row.dropped and len(found.setdefault(row.dropped, [])) < SHOWN:
                found[row.dropped].append(row.sample())
        return found


def survey(inputs: Sequence[Input], data: DataConfig, *, progress: Progress) -> Survey:
    """The first rows of all files that are no running text, in their order.

    Args:
        progress: called with the rows seen.

    Raises:
        LinnetError: a file cannot be read, or its columns cannot be mapped.
    """
    seen = Survey()
    filters, keep = Filters(data.filters), set(read_ids(data.keep, key="data.keep").tolist())
    characters = 0
    for turns, place, row_format in _parsed(inputs, data, seen):
        if len(seen.rows) >= min(ROWS, data.max_rows or ROWS) or characters >= CHARACTERS:
            seen.whole = data.max_rows is not None and len(seen.rows) == data.max_rows
            break
        number = row_id(turns)
        verdict = filters(turns, clean_only=number in keep)
        seen.rows.append(
            SeenRow(number, place, turns, verdict.turns, verdict.dropped, verdict.changed, row_format)
        )
        characters += sum(len(turn.text) for turn in turns)
        progress(len(seen.rows))
    return seen


def _parsed(
    inputs: Sequence[Input], data: DataConfig, seen: Survey
) -> Iterator[tuple[list[Turn], str, RowFormat]]:
    """(turns, place, format) of each row; those that cannot be used go to `seen`."""
    for one in inputs:
        if one.is_document(data.format):
            continue
        row_format = one.row_format(data)
        first_line = 0
        for piece in pieces_of(one, format=data.format, share=0.0):
            reader = open_span(piece.span, observe=lambda count: None)
            empty = seen.empty
            for record in reader:
                place = f"{one.file.name}:{first_line + record.line}"
                turns = _turns(record, row_format, place, seen)
                seen.empty = empty + reader.empty
                if turns:
                    yield turns, place, row_format
            first_line += reader.lines


def _turns(record: Record | BadRecord, row_format: RowFormat, place: str, seen: Survey) -> list[Turn]:
    if isinstance(record, BadRecord):
        reason, text = record.reason, ""
    else:
        try:
            return row_format.parse(record.values)
        except Unusable as problem:
            reason, text = str(problem), " ".join(map(str, record.values.values()))
    seen.reasons[reason] += 1
    if len(seen.bad) < SHOWN:
        seen.bad.append(Sample("", place, shorten(text, EXCERPT), reason))
    return []


def _edit(row: SeenRow, rule: str) -> Edit:
    """The first place in which the rule changes the row."""
    alone = Filters(FiltersConfig.model_validate({rule: True}))(row.turns, clean_only=True)
    turns = alone.turns if alone.changed else row.cleaned  # Some change only what another rule has left.
    before, after = ("\n".join(turn.text for turn in some) for some in (row.turns, turns))
    start = next(
        (i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new),
        min(len(before), len(after)),
    )
    common = 0  # characters that are equal from the end
    while common < min(len(before), len(after)) - start and before[-1 - common] == after[-1 - common]:
        common += 1
    shown = [
        shorten(text[max(0, start - AROUND) : len(text) - common + AROUND], EXCERPT)
        for text in (before, after)
    ]
    return Edit(f"{row.id:016x}", row.place, *shown)
