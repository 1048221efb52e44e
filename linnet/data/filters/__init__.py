"""Filters: which rows are left out, and what is cut from the others.

What   `Filters(config)(turns)` gives a `Verdict`: the cleaned turns, the rule that drops the row, the rules that
       changed it.
Why    What is in the data is what the model will write. Each rule has a name, is counted under it, and is off until
       the recipe switches it on.
How    Cleaning rules look at each turn by itself, in any order until nothing changes. Then the rules that drop look at
       the whole row: the texts of all its turns, a line end between them. A row whose text, or whose answer, was
       cleaned away is dropped as `empty`. Duplicates are not found here, but where all rows are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from linnet.config import FiltersConfig
from linnet.data.filters.cleaning import CLEANING
from linnet.data.filters.judging import digit_share, language_judge, repeated_share, symbol_share
from linnet.turns.template import Turn

_ROUNDS = 8  # of cleaning; two are enough for all real text seen, the second to find nothing


class Verdict(NamedTuple):
    """What the filters make of a row."""

    turns: list[Turn]
    """The cleaned turns, in their order; none is missing."""
    dropped: str
    """Name of the rule that drops the row; "" keeps it."""
    changed: tuple[str, ...]
    """Names of the rules that changed the text."""


class Filters:
    """The rules that a recipe has switched on. Can be pickled: workers make their own."""

    def __init__(self, config: FiltersConfig) -> None:
        """Raises UsageError where a rule's library is missing or a language has no such code."""
        self.config = config
        self._cleaning = {name: rule for name, rule in CLEANING.items() if getattr(config, name)}
        self._judges = _judges(config)

    @property
    def idle(self) -> bool:
        """Whether no rule is on."""
        return not self._cleaning and not self._judges

    def __reduce__(self) -> tuple[type[Filters], tuple[FiltersConfig]]:
        return Filters, (self.config,)

    def __call__(self, turns: Sequence[Turn], *, clean_only: bool = False) -> Verdict:
        """The verdict on one row; with `clean_only` (rows of data.keep) no rule drops it."""
        cleaned, changed = self._clean(turns)
        emptied = bool(changed) and _has_answer(turns) and not _has_answer(cleaned)
        if clean_only:
            return Verdict(list(turns), "", ()) if emptied else Verdict(cleaned, "", changed)
        if emptied:
            return Verdict(cleaned, "empty", changed)
        if self._judges and cleaned:
            text = "\n".join(turn.text for turn in cleaned)
            for name, drops in self._judges.items():
                if drops(text):
                    return Verdict(cleaned, name, changed)
        return Verdict(cleaned, "", changed)

    def _clean(self, turns: Sequence[Turn]) -> tuple[list[Turn], tuple[str, ...]]:
        names: dict[str, None] = {}
        cleaned = []
        for turn in turns:
            text, changed = self._clean_text(turn.text)
            names |= dict.fromkeys(changed)
            cleaned.append(Turn(turn.role, text) if changed else turn)
        return cleaned, tuple(name for name in self._cleaning if name in names)

    def _clean_text(self, text: str) -> tuple[str, set[str]]:
        """The text that no rule changes any more, and who changed it; as it was if there is no such text."""
        original, changed = text, set[str]()
        for _ in range(_ROUNDS):
            before = text
            for name, rule in self._cleaning.items():
                after = rule(text)
                if after != text:
                    changed.add(name)
                    text = after
            if text == before:
                return text, changed
        return original, set()


def _has_answer(turns: Sequence[Turn]) -> bool:
    """Whether there is something to learn: an assistant's turn, or plain text."""
    return any(turn.role in ("assistant", "text") and turn.text.strip() for turn in turns)


def _judges(config: FiltersConfig) -> dict[str, Callable[[str], object]]:
    """The switched-on rules that drop, cheap ones first; each says whether a text goes."""
    judges: dict[str, Callable[[str], object]] = {}
    longest = config.longest
    if config.shortest:
        judges["shortest"] = lambda text: len(text) < config.shortest
    if longest != "off":
        judges["longest"] = lambda text: len(text) > longest
    if config.symbols < 1:
        judges["symbols"] = lambda text: symbol_share(text) > config.symbols
    if config.digits < 1:
        judges["digits"] = lambda text: digit_share(text) > config.digits
    if config.repetition < 1:
        judges["repetition"] = lambda text: repeated_share(text) > config.repetition
    if config.language:
        judges["language"] = language_judge(config.language)
    return judges
