"""A row becomes an example: segments of text that are learned, or only read.

What   `Segment`, and one function for each row format.
Why    Question and answer, dialogue, article and abstract, a plain line: all are the same to packing and training.
How    `example_ids` is the one place where segments become ids, in training and in generation. Each segment is
       encoded by itself, so its ids do not depend on its neighbours. `text` is no row format: a document is streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from linnet.tokenizer import Tokenizer


class Segment(NamedTuple):
    """A piece of an example; `learn=False` is read but not trained on."""

    text: str
    learn: bool


Example = list[Segment]


def line_example(line: str) -> Example:
    """A line is one segment, and learned.

    >>> line_example("hello")
    [Segment(text='hello', learn=True)]
    """
    return [Segment(line, learn=True)]


ROW_FORMATS: dict[str, Callable[[str], Example]] = {"lines": line_example}


def example_ids(tokenizer: Tokenizer, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Ids and learn flags of each example: `[end-of-text, 0] + ids of the segments + [end-of-text, 1]`."""
    texts = [segment.text for example in examples for segment in example]
    encoded = iter(tokenizer.encode_batch(texts))
    end, result = tokenizer.end_of_text, []
    for example in examples:
        ids, learn = [end], [0]
        for segment in example:
            segment_ids = next(encoded)
            ids += segment_ids
            learn += [int(segment.learn)] * len(segment_ids)
        result.append(([*ids, end], [*learn, 1]))
    return result
