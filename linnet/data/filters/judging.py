"""Rules that judge a row: its language, length, repetition, symbols and digits.

What   Shares and lengths of a text, and `languages_of`, which says what a text is written in.
Why    Rows that are mostly numbers, signs or one phrase again and again teach a model to write such rows.
How    A share is of characters, from 0 to 1. Limits are the recipe's; Gopher's are a place to start (Rae et al. 2021,
       "Scaling Language Models", table A1): at most 0.15 of the text in repeated phrases of five words, 0.2 in
       repeated lines, one symbol for ten words.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

from linnet.errors import UsageError

PHRASE = 5
"""Words of a phrase in `repeated_share`."""
SHORTEST_JUDGED = 20
"""Characters below which a text has no language: "OK", "12 + 3"."""
LONGEST_JUDGED = 4_000
"""Characters that are looked at to tell the language."""

_ORDINARY = bytes(c for c in range(128) if chr(c).isalnum() or chr(c).isspace() or chr(c) in ".,;:!?'\"()-")
_ORDINARY_KINDS = frozenset(
    "LMNPZ"
)  # Unicode's categories of letters, vowel signs, numbers, punctuation, spaces


def repeated_share(text: str) -> float:
    """The larger of two shares: characters in lines that were there before, five-word phrases that were."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    length = sum(map(len, lines))
    if not length:
        return 0.0
    repeated = (length - sum(map(len, set(lines)))) / length
    words = text.lower().split()
    phrases = len(words) - PHRASE + 1
    if phrases > 0:
        distinct = set(zip(*(islice(words, start, None) for start in range(PHRASE)), strict=False))
        repeated = max(repeated, 1 - len(distinct) / phrases)
    return repeated


def symbol_share(text: str) -> float:
    """Characters that are no letters, digits, spaces or ordinary punctuation: + = < # | @ _ € ☺ and control codes."""
    left = text.encode("utf-8", "surrogatepass").translate(None, _ORDINARY).decode("utf-8", "surrogatepass")
    symbols = sum(
        count
        for sign, count in Counter(left).items()
        if sign.isascii() or unicodedata.category(sign)[0] not in _ORDINARY_KINDS
    )
    return symbols / len(text) if text else 0.0


def digit_share(text: str) -> float:
    """Characters 0 to 9."""
    data = text.encode("utf-8", "surrogatepass")
    return (len(data) - len(data.translate(None, b"0123456789"))) / len(text) if text else 0.0


def language_judge(wanted: Sequence[str]) -> Callable[[str], str]:
    """A function text -> the language it is in if that is surely none of `wanted` (codes such as "en"), else "".

    Raises:
        UsageError: the library is missing, or a code is none.
    """
    try:
        import pycld2
    except ImportError as error:
        raise UsageError(
            "data.filters.language needs the library pycld2; install it with: pip install 'linnet[language]'."
        ) from error
    known = set(dict(pycld2.LANGUAGES).values())
    for code in wanted:
        if code not in known:
            raise UsageError(
                f'data.filters.language: there is no language {code!r}; write for example "en" or "de".'
            )

    # Old or simple English is often taken for Scots: 43 of 32,777 lines of Shakespeare's; 19 for any other.
    kept = {"un", *wanted} | ({"sco"} if "en" in wanted else set())

    def judge(text: str) -> str:
        if len(text) < SHORTEST_JUDGED:
            return ""
        plain = text[:LONGEST_JUDGED]
        try:
            sure, _, details = pycld2.detect(plain)
        except (pycld2.error, UnicodeEncodeError):
            # It refuses control codes, unassigned characters and halves of surrogate pairs.
            sure, _, details = pycld2.detect("".join(c if c.isprintable() else " " for c in plain))
        code = str(details[0][1])
        return code if sure and code not in kept else ""

    return judge
