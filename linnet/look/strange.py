"""Duplicates and the strangest rows: what a person should look at before they train.

What   `find_duplicates`, `find_strange`: of the rows that a survey saw.
Why    Bad rows are seldom known beforehand, but they stand out: by length, symbols, repetition or foreign words.
How    One figure for each row and respect; the extremes are shown with their id, which data.drop takes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from linnet.data.duplicates import estimated_jaccard, near_duplicates, sketches
from linnet.look.report import Duplicates, Strange
from linnet.look.survey import SHOWN, SeenRow

NEAR = 0.8  # estimated Jaccard index from which rows count as nearly equal
SHOWN_STRANGE = 2
FEWEST_CHARACTERS = 20  # a row that is shorter is not judged by its symbols
FEWEST_WORDS = 12  # nor by its words
RUN = 4  # words that make a repetition

_WORD = re.compile(r"\w+")
_SYMBOL = re.compile(r"[^\w\s]")


def find_duplicates(rows: Sequence[SeenRow]) -> Duplicates:
    """Rows that are equal to an earlier one, and nearly so."""
    first: dict[int, SeenRow] = {}
    exact: list[tuple[SeenRow, SeenRow]] = []
    for row in rows:
        before = first.setdefault(row.id, row)
        if before is not row:
            exact.append((row, before))
    distinct = list(first.values())
    made = sketches([row.text for row in distinct])
    near = np.flatnonzero(near_duplicates(made, threshold=NEAR, held_out=np.zeros(len(distinct), bool)))
    pairs = [(row.sample("equal"), before.sample()) for row, before in exact[: max(1, SHOWN - len(near))]]
    for index in near[: SHOWN - len(pairs)].tolist():
        likeness = estimated_jaccard(made[:index], made[index])
        before = distinct[int(likeness.argmax())]
        pairs.append((distinct[index].sample(f"{likeness.max():.0%} alike"), before.sample()))
    return Duplicates(len(exact), len(near), pairs)


class _Words(NamedTuple):
    """A row with its words in lower case."""

    row: SeenRow
    text: str
    words: list[str]


def find_strange(rows: Sequence[SeenRow]) -> list[Strange]:
    """The extremes in five respects, the strangest first; a respect in which no row stands out is left out."""
    unique = {row.id: row for row in rows}.values()
    split = [_Words(row, text, _WORD.findall(text.lower())) for row in unique if (text := row.text)]
    seen_in: Counter[str] = Counter()
    for one in split:
        seen_in.update(set(one.words))
    few = len(split) < 2 * SHOWN_STRANGE

    def alone(one: _Words) -> float:
        return sum(seen_in[word] == 1 for word in set(one.words)) / len(set(one.words))

    def extremes(
        what: str, figure: Callable[[_Words], float], why: str, among: Sequence[_Words], least: float = 0.0
    ) -> Strange:
        measured = [(figure(one), one.row) for one in among]
        measured.sort(key=lambda pair: -pair[0])
        shown = [(value, row) for value, row in measured[:SHOWN_STRANGE] if value > least]
        return Strange(what, [row.sample(why.format(abs(value))) for value, row in shown])

    worded = [one for one in split if len(one.words) >= FEWEST_WORDS]
    characters = [one for one in split if len(one.text) >= FEWEST_CHARACTERS]
    found = [
        extremes("longest", lambda one: len(one.text), "{:,.0f} characters", split),
        extremes("shortest", lambda one: -len(one.text), "{:,.0f} characters", split, least=-np.inf),
        extremes("most symbols", _symbols, "{:.0%} symbols", characters, least=0.05),
        extremes("says it again", _repeated, "{:.0%} of it repeated", worded, least=0.1),
        extremes("words of its own", alone, "{:.0%} of its words in no other row", worded, least=0.05),
    ]
    return [one for one in found if one.rows and not few]


def _symbols(one: _Words) -> float:
    """Share of characters that are neither letters, digits nor space."""
    return len(_SYMBOL.findall(one.text)) / len(one.text)


def _repeated(one: _Words) -> float:
    """Share of runs of four words that were there before."""
    runs = list(zip(*(one.words[start:] for start in range(RUN)), strict=False))
    return 1 - len(set(runs)) / len(runs)
