"""The first examples in the order of the file, as segments of text that are learned or read.

What   `first_examples` of rows, `first_blocks` of running text.
Why    What a model learns is best seen as what it is: the ids of an example, decoded, before split and shuffle.
How    Rows go through the Encoder of the preparing. Without a tokenizer the template's segments are shown instead,
       which are the same where a row fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from linnet.data.reading.text import read_text
from linnet.data.windows import Encoder
from linnet.look.survey import SeenRow
from linnet.tokenizer import Tokenizer
from linnet.turns.template import Example, Segment

CHARACTERS = 1 << 16  # of a document, that blocks are shown of


def first_examples(
    rows: Sequence[SeenRow], tokenizer: Tokenizer | None, *, size: int | None, most: int
) -> list[Example]:
    """The first `most` examples; `size` is the most ids of one, None where they are not windowed."""
    found: list[Example] = []
    for row in rows:
        if len(found) >= most:
            break
        found += _segments(row) if tokenizer is None else _windows(row, tokenizer, size)
    return found[:most]


def _segments(row: SeenRow) -> list[Example]:
    if row.row_format.template is None:
        return [[Segment(turn.text, True, ends=True) for turn in row.cleaned]]
    return [_joined(row.row_format.template.segments(row.cleaned, learn=row.row_format.learn))]


def _joined(segments: Example) -> Example:
    """Neighbours that are both learned, or both read, as one."""
    joined: Example = []
    for segment in segments:
        if joined and joined[-1].learn == segment.learn and not joined[-1].ends:
            joined[-1] = Segment(joined[-1].text + segment.text, segment.learn, segment.ends)
        else:
            joined.append(segment)
    return joined


def _windows(row: SeenRow, tokenizer: Tokenizer, size: int | None) -> Iterator[Example]:
    encoder = Encoder(row.row_format, tokenizer, size=size or 1 << 62)
    for encoded in encoder([row.cleaned]):
        for window in encoded.windows:
            yield decode(tokenizer, window.ids.tolist(), window.learn.tolist())


def decode(tokenizer: Tokenizer, ids: Sequence[int], learn: Sequence[int]) -> Example:
    """Ids with their flags as segments, without the end-of-text in front.

    A segment ends where the flag changes or at end-of-text, which is learned like the text before it or not at all.
    """
    segments: Example = []
    pairs = list(zip(ids, learn, strict=True))
    if pairs and pairs[0][0] == tokenizer.end_of_text:
        pairs = pairs[1:]
    for (learned, ends), group in groupby(
        pairs, key=lambda pair: (bool(pair[1]), pair[0] == tokenizer.end_of_text)
    ):
        text = tokenizer.decode([token for token, _ in group])
        if ends and segments:
            segments[-1] = segments[-1]._replace(ends=True)
        elif not ends:
            segments.append(Segment(text, learned))
    return segments


def first_blocks(path: Path, tokenizer: Tokenizer | None, *, block_size: int, most: int) -> list[Example]:
    """Running text as a row of the training shows it: the first blocks of `block_size` tokens.

    Where training starts a block shifts with each epoch.
    """
    text = "".join(islice(read_text(path), 1))[:CHARACTERS]
    if tokenizer is None:
        return [[Segment(text[: 4 * block_size], True)]]
    ids = tokenizer.encode(text)
    blocks = [ids[start : start + block_size] for start in range(0, most * block_size, block_size)]
    return [[Segment(tokenizer.decode(block), True)] for block in blocks if block]
