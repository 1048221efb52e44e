"""Near duplicates: rows whose words are nearly the same, found without comparing every row with every other.

What   `sketches(texts)` makes 128 bytes of each row; `near_duplicates(sketches, ...)` says which rows to drop.
Why    A question that stands in the training data with one word changed makes the held-out loss a lie, so training
       rows near a held-out one always go; copies among the training rows are learned by heart (Lee et al. 2022,
       "Deduplicating Training Data Makes Language Models Better").
How    Two rows are as near as their sets of five-word shingles overlap (Jaccard index: common / all). MinHash (Broder
       1997; the library rensa) makes 64 numbers of a set, and two rows agree in as large a share of them as their sets
       overlap. Rows that agree in all numbers of one band are compared, no others (locality-sensitive hashing).
       Words are compared in lower case and without punctuation. A row of fewer than eight words is near
       only to one of the same words, a row without a word only to its equal.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from rensa import RMinHash  # type: ignore[import-untyped]

HELD_OUT_THRESHOLD = 0.8
"""From here on a training row is near a held-out one. At 0.8 a row of 50 words may differ in one word amid them."""
PERMUTATIONS = 64
"""Numbers in a sketch. The estimate's standard deviation at 0.8 is sqrt(0.8 * 0.2 / 64) = 0.05."""
SHINGLE = 5
"""Words in a shingle."""
SHORT = 8
"""Rows of fewer words are one shingle, so that near means the same words. At 0.8 no other way to be near is left."""
LONGEST = 2_000_000
"""Characters of a row that are looked at; more would only cost memory."""

_SEED = 1337
_BATCH = 200_000  # characters at once: the arrays of a batch stay in the processor's cache
_LONGEST_WORD = 64  # bytes; a longer run of letters is cut, so that the loop over its parts stays short
_RECALL = 0.99  # least chance that a pair exactly at the threshold shares a band
_BUCKET = (
    200  # rows of a bucket that each other row of it is compared with: bounds the work on text from templates
)
_PAIRS = 100_000  # compared at once: 32 MB

Sketches = npt.NDArray[np.uint16]
Hashes = npt.NDArray[np.uint64]

# ASCII letters (lowered) and digits are words, also all of what is not ASCII; the rest is space.
_WORDS = bytes(c if chr(c).isalnum() or c > 127 else 32 for c in range(128)) + bytes(range(128, 256))
_FIRST_BYTES = np.array([2 ** (8 * n) - 1 for n in range(8)] + [2**64 - 1], dtype=np.uint64)
_ODD = [np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0x9FB21C651E98DF25)]


def sketches(texts: Sequence[str]) -> Sketches:
    """A sketch of each text: [n, PERMUTATIONS], the same whatever the other texts are."""
    result = np.empty((len(texts), PERMUTATIONS), dtype=np.uint16)
    begin = 0
    for batch in _batches(texts):
        result[begin : begin + len(batch)] = _sketch_batch(batch)
        begin += len(batch)
    return result


def near_duplicates(
    sketches: Sketches, *, threshold: float, held_out: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which rows to drop, [n]: training rows near a held-out row, and rows near an earlier one of their own side.

    Args:
        sketches: [n, PERMUTATIONS], in the rows' order.
        threshold: least share of equal numbers for near; 0 keeps what is near within a side, and then
            HELD_OUT_THRESHOLD decides between the sides.
        held_out: [n], which rows are held out.
    """
    near = threshold or HELD_OUT_THRESHOLD
    drop = np.zeros(len(sketches), dtype=bool)
    if held_out.any():
        training, kept_out = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        drop[_near_any(sketches, near, sources=kept_out, targets=training)] = True
    if threshold:
        for side in (np.flatnonzero(held_out), np.flatnonzero(~held_out & ~drop)):
            drop[_near_any(sketches, near, sources=side, targets=side)] = True
    return drop


def estimated_jaccard(left: Sketches, right: Sketches) -> npt.NDArray[np.float64]:
    """Share of equal numbers of each pair of sketches: [..., PERMUTATIONS] twice -> [...]."""
    return np.asarray((left == right).mean(axis=-1), dtype=np.float64)


def shingle_hashes(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of all shingles of the texts behind each other, [shingles], and where each text's begin, [n + 1]."""
    words, first = _word_hashes(texts)
    counts = np.diff(first)
    short = counts < SHORT
    shingles = np.where(short, 1, counts - (SHINGLE - 1))
    offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(shingles)))
    padded = np.concatenate((words, np.zeros(SHINGLE, dtype=np.uint64)))
    begins = np.arange(offsets[-1]) + np.repeat(first[:-1] - offsets[:-1], shingles)
    hashes = padded[begins]
    for step in range(1, SHINGLE):
        hashes *= _ODD[2]
        hashes += padded[begins + step]
    few = np.flatnonzero(short)
    whole = np.zeros(len(few), dtype=np.uint64)
    for step in range(SHORT - 1):
        whole = np.where(
            counts[few] > step, _mix(whole + padded[np.minimum(first[few] + step, len(words))]), whole
        )
    hashes[offsets[few]] = whole
    for row in np.flatnonzero(counts == 0).tolist():
        data = texts[row].encode("utf-8", "surrogatepass")
        hashes[offsets[row]] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return _mix(hashes), offsets


def _sketch_batch(texts: Sequence[str]) -> Sketches:
    """The sketches of a few texts, [n, PERMUTATIONS]; the low half of each number, as telling as all of it."""
    hashes, offsets = shingle_hashes(texts)
    result = np.empty((len(texts), PERMUTATIONS), dtype=np.uint16)
    single = np.diff(offsets) == 1
    # The numbers of one shingle are any 64 numbers drawn from it; rensa takes 6 us for each row, this 0.5 us.
    alone = hashes[offsets[:-1][single]]
    result[single] = _mix(alone[:, None] + np.arange(PERMUTATIONS, dtype=np.uint64) * _ODD[0])
    if not single.all():
        lengths = np.diff(offsets)
        several = hashes[np.repeat(~single, lengths)]
        begins = np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(lengths[~single], dtype=np.uint64)))
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(several, begins, PERMUTATIONS, _SEED)
        numbers = np.fromiter(chain.from_iterable(matrix.to_rows()), dtype=np.uint32)
        result[~single] = numbers.reshape(-1, PERMUTATIONS)
    return result


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in groups of about _BATCH characters, each text cut at LONGEST."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text[:LONGEST])
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _word_hashes(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of all words of the texts, [words], and where each text's begin, [n + 1]."""
    rows = [_plain(text) for text in texts]
    row_ends = np.cumsum([0] + [len(row) + 1 for row in rows])
    # Spaces at the end, because a word is read eight bytes at a time, and one in front: each edge is a change.
    data = np.frombuffer(b"".join((b" ", b" ".join(rows), b" " * 9)).translate(_WORDS), dtype=np.uint8)
    if not all(map(bytes.isascii, rows)):
        data, row_ends = _apart(data, row_ends)
    letter = data != 32
    edges = np.flatnonzero(letter[1:] != letter[:-1]) + 1
    begins, lengths = _cut_long(edges[::2], edges[1::2] - edges[::2])
    eight = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data.data, strides=(1,))
    hashes: Hashes = (eight[begins] & _FIRST_BYTES[np.minimum(lengths, 8)]) + lengths.astype(
        np.uint64
    ) * _ODD[0]
    for start in range(8, _LONGEST_WORD, 8):
        more = np.flatnonzero(lengths > start)
        if not len(more):
            break
        chunk = eight[begins[more] + start] & _FIRST_BYTES[np.minimum(lengths[more] - start, 8)]
        hashes[more] = _mix(hashes[more]) + chunk
    return _mix(hashes), np.searchsorted(begins, row_ends + 1)


def _plain(text: str) -> bytes:
    """Lower case; other forms of one letter (full width, ligatures, composed accents) made equal."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.lower().encode("utf-8", "surrogatepass")


def _apart(
    data: npt.NDArray[np.uint8], row_ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Text that is not only ASCII, with spaces for its punctuation and around each character of three or four bytes.

    Most scripts from U+0800 on write no spaces, so that each of their characters is a word. Punctuation is U+0080 to
    U+00BF, U+2000 to U+207F, U+3000 to U+303F.
    """
    data = data.copy()
    for lead, low, high, size in ((0xC2, 0x80, 0xBF, 2), (0xE2, 0x80, 0x81, 3), (0xE3, 0x80, 0x80, 3)):
        marks = np.flatnonzero((data[:-1] == lead) & (data[1:] >= low) & (data[1:] <= high))
        for place in range(size):
            data[marks + place] = 32
    leads = np.flatnonzero(data >= 0xE0)
    places = np.concatenate((leads, leads + 3 + (data[leads] >= 0xF0)))
    places.sort()
    return np.insert(data, places, 32), row_ends + np.searchsorted(places, row_ends + 1)


def _cut_long(
    begins: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Words of more than _LONGEST_WORD bytes as several."""
    if not len(lengths) or lengths.max() <= _LONGEST_WORD:
        return begins, lengths
    pieces = -(-lengths // _LONGEST_WORD)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = np.repeat(begins, pieces) + number * _LONGEST_WORD
    return begins, np.minimum(np.repeat(lengths, pieces) - number * _LONGEST_WORD, _LONGEST_WORD)


def _mix(hashes: Hashes) -> Hashes:
    """Each bit of the number spread over all bits (two rounds of a multiply-xorshift)."""
    hashes = hashes ^ (hashes >> np.uint64(32))
    hashes *= _ODD[1]
    hashes ^= hashes >> np.uint64(29)
    hashes *= _ODD[2]
    hashes ^= hashes >> np.uint64(32)
    return hashes


def _near_any(
    sketches: Sketches, near: float, *, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Those of the rows `targets` that are near a row of `sources`; where both are the same, near an earlier one."""
    found = np.zeros(len(sketches), dtype=bool)
    # Of equal sketches the first speaks for all, or a text that is there a thousand times would fill a bucket.
    first = sources[np.sort(np.unique(_keys(sketches, sources), return_index=True)[1])]
    if same := sources is targets:
        found[sources] = True
        found[first] = False
    width = numbers_in_band(near)
    for start in range(0, PERMUTATIONS - width + 1, width):
        # Sources stand in front, and a stable sort keeps them there in each bucket.
        rows = first if same else np.concatenate((first, targets[~found[targets]]))
        keys = _keys(sketches[:, start : start + width], rows)
        order = np.argsort(keys, kind="stable")
        opens = np.diff(keys[order], prepend=~keys[order[:1]]) != 0
        number = np.cumsum(opens) - 1
        begins = np.flatnonzero(opens)[number]
        if same:
            others = np.arange(len(rows)) - begins
        else:
            is_source = order < len(first)
            others = np.where(is_source, 0, np.bincount(number, weights=is_source).astype(np.int64)[number])
        _compare(sketches, near, rows=rows[order], begins=begins, others=others, found=found)
    return np.flatnonzero(found)


def _compare(
    sketches: Sketches,
    near: float,
    *,
    rows: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    found: npt.NDArray[np.bool_],
) -> None:
    """Mark in `found` the rows that are near one of the first `others` rows of their bucket, which is at `begins`."""
    waiting = np.flatnonzero(others)
    for place in range(_BUCKET):
        waiting = waiting[(others[waiting] > place) & ~found[rows[waiting]]]
        if not len(waiting):
            return
        for part in np.array_split(waiting, -(-len(waiting) // _PAIRS)):
            here, there = rows[part], rows[begins[part] + place]
            found[here[estimated_jaccard(sketches[here], sketches[there]) >= near]] = True


def _keys(sketches: Sketches, rows: npt.NDArray[np.int64]) -> Hashes:
    """One number for all numbers of each of these rows' sketches, [rows]."""
    keys = np.zeros(len(rows), dtype=np.uint64)
    for column in range(sketches.shape[1]):
        keys = _mix(keys + sketches[rows, column])
    return keys


@functools.cache
def numbers_in_band(threshold: float) -> int:
    """Numbers in a band: as many as still let a pair at the threshold share a band with a chance of _RECALL.

    A pair of similarity s shares one of b bands of r numbers with the chance 1 - (1 - s^r)^b (Leskovec et al.,
    "Mining of Massive Datasets", 3.4).
    """
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= _RECALL:
            return rows
    return 1
