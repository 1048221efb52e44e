"""GPT-2's pre-tokenizer in Python: where a text may be cut, and the ids of its words from a table.

What   `cut_stream` cuts a text of any length into pieces that have the ids of the whole. `WordIds` gives the ids of
       texts as flat arrays.
Why    A text repeats its words: 19 MB of novels are 4.0 million words, but 66,000 different ones. Splitting with `re`,
       looking each word up and joining the ids in numpy gives 5 to 13 MB/s on one core where `tokenizers`, which
       merges most words anew, gives 1 to 1.5. It needs no further package.
How    Python's `re` has no \\p{L}. Classes are built from characters whose kind (letter, digit, white space, other)
       was the same in Unicode 3.2 and is today; a text with any other character goes to `tokenizers` as a whole, so
       the Unicode version of neither library matters.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Pieces of this many characters: `tokenizers` gave 7.3 MB/s at 4,096 to 16,384 on two cores, 4.8 at 65,536.
PIECE = 8192
BATCH = 64 * PIECE
# A run without a place to cut (one letter a million times) is cut here after all; its ids may then differ.
LONGEST_RUN = 262_144
# A table with more characters than this starts anew: about 100 MB of memory. Novels of 19 MB fill it to 0.5 million.
TABLE = 8_000_000

# Where a text may be cut so that both halves give the ids of the whole. GPT-2's pre-tokenizer is
#     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# No token has white space after something else, so a cut before white space is exact; a cut after it is not, because
# `\s+(?!\S)` looks ahead. No token has a letter, or a digit, before something of another kind, so the end of a run of
# letters or digits is exact too; that serves text without white space. The classes hold only characters whose kind
# is the same in every Unicode version.
_LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u0e01-\u0e2e\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_OTHERS = "!-/:-@[-`{-~\u3001\u3002\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
CUT_GPT2 = re.compile(
    rf"(?<=[!-~{_LETTERS}])(?=[ \n])|(?<=[{_LETTERS}])(?=[0-9{_OTHERS}])|(?<=[0-9])(?=[{_LETTERS}{_OTHERS}])"
)


class FlatIds(NamedTuple):
    """Ids of n texts without a Python object for each: those of text i are `ids[offsets[i] : offsets[i + 1]]`."""

    ids: npt.NDArray[np.uint32]
    """[T], of all texts one after the other."""
    offsets: npt.NDArray[np.int64]
    """[n + 1], from 0 to T."""


def cut_stream(texts: Iterable[str], *, places: re.Pattern[str] = CUT_GPT2) -> Iterator[list[str]]:
    """Cut the concatenation of `texts` at `places` into pieces of about PIECE characters, a batch of them at a time.

    A piece is longer where no place comes, at most LONGEST_RUN + BATCH characters.
    """
    rest = ""
    for text in texts:
        rest += text
        if len(rest) >= BATCH:
            *pieces, rest = _cut(rest, places)
            if len(rest) > LONGEST_RUN:
                pieces, rest = [*pieces, rest], ""
            yield pieces
    yield [piece for piece in _cut(rest, places) if piece]


def _cut(text: str, places: re.Pattern[str]) -> list[str]:
    """Pieces of `text`; the last one, which may be empty, must wait for what follows."""
    pieces, start = [], 0
    while start + PIECE < len(text) and (place := places.search(text, start + PIECE)):
        pieces.append(text[start : place.start()])
        start = place.start()
    return [*pieces, text[start:]]


class WordIds:
    """Texts to ids by a table that grows with each new word. Only for GPT-2's pre-tokenizer.

    Args:
        encode: ids of each of some texts, by the tokenizer itself.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]) -> None:
        self._encode = encode
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._rows = _Rows()
        self._characters = 0
        self._lengths = np.empty(0, np.int64)  # [rows]
        self._ids = np.empty(0, np.uint32)  # of all rows, one after the other
        self._starts = np.empty(0, np.int64)  # [rows], into _ids

    def __call__(self, texts: Sequence[str]) -> FlatIds:
        """Ids of `texts`. What it takes is about 20 bytes a character. Threads wait for each other."""
        with self._lock:
            return self._look_up(texts)

    def _look_up(self, texts: Sequence[str]) -> FlatIds:
        if self._characters > TABLE:
            self._clear()
        words = [_words(text) for text in texts]
        known = len(self._rows)
        rows = np.fromiter(map(self._rows.__getitem__, chain.from_iterable(words)), np.int64)
        if len(self._rows) > known:
            try:
                self._learn(list(self._rows)[known:])
            except Exception:
                self._clear()  # its rows and its ids must agree
                raise
        lengths = self._lengths[rows]
        ends = np.cumsum(lengths)
        # Ids of row r lie at starts[r]; an id's place there is its place here, moved by a constant for each word.
        moved = np.repeat(self._starts[rows] - (ends - lengths), lengths)
        ids = self._ids[moved + np.arange(len(moved))]
        last_words = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
        offsets = np.concatenate([[0], ends])[np.concatenate([[0], last_words])]
        return FlatIds(ids, offsets)

    def _learn(self, words: list[str]) -> None:
        new = self._encode(words)
        self._characters += sum(map(len, words))
        self._lengths = np.concatenate([self._lengths, np.fromiter(map(len, new), np.int64, len(new))])
        self._ids = np.concatenate([self._ids, np.fromiter(chain.from_iterable(new), np.uint32)])
        self._starts = np.cumsum(self._lengths) - self._lengths


class _Rows(dict[str, int]):
    """Word -> its number, given when it is asked for the first time."""

    def __missing__(self, word: str) -> int:
        row = self[word] = len(self)
        return row


_ASCII_WORDS = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)


def _words(text: str) -> list[str]:
    """The pre-tokenizer's words; the text itself where a character of it may be of another kind elsewhere."""
    if text.isascii():
        return _ASCII_WORDS.findall(text)
    words, unsure = _unicode_words()
    return [text] if unsure.search(text) else words.findall(text)


@cache
def _unicode_words() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(the pre-tokenizer's expression, what matches a character that it is not sure about); 0.1 s to build."""
    kinds: dict[str, list[int]] = {"L": [], "N": [], "Z": [], "": []}
    for point in range(0x10000):
        character = chr(point)
        if (kind := _kind(character)) is not None:
            kinds[kind].append(point)
    kinds["L"] += range(0x20000, 0x2A6D7)  # CJK extension B, Unicode 3.1
    kinds[""] += range(0x1F300, 0x1F650)  # pictures and faces; not assigned before, which is "other" as well
    letters, digits, spaces, others = map(_ranges, kinds.values())
    words = (
        rf"'(?:[sdmt]|ll|ve|re)| ?[{letters}]+| ?[{digits}]+| ?[{others}]+"
        rf"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )
    return re.compile(words), re.compile(rf"[^{letters}{digits}{spaces}{others}]")


_WHITE_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(point) for point in range(0x2000, 0x200B)
}


def _kind(character: str) -> str | None:
    """L, N, Z (white space) or "" (all else); None where Unicode versions may differ."""
    if character in _WHITE_SPACE:
        return "Z"
    category = unicodedata.category(character)
    if category[0] not in "LN":  # what is assigned and no letter now was none before
        return None if category in ("Cn", "Cs") else ""
    return category[0] if unicodedata.ucd_3_2_0.category(character)[0] == category[0] else None


def _ranges(points: list[int]) -> str:
    """The inside of a character class."""
    runs: list[list[int]] = []
    for point in points:
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)
