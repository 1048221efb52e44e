"""What of a long article is read where it does not fit: sentences that are chosen, in their order.

What   `excerpt(text, reads, room, lengths)`: the beginning and the end, or the first sentences of all paragraphs.
Why    A row of 1,024 tokens holds an eighth of a paper; which eighth decides what a summary can know.
How    Sentences are put in an order of importance and taken until the room is used. Nothing is cut inside a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from linnet.turns.sentences import split_sentences

Lengths = Callable[[Sequence[str]], list[int]]
"""Tokens of each text, with the space before it."""

# Multiples of it, modulo 1, fill the unit interval evenly for any count: the fraction of the golden ratio.
_GOLDEN = 0.6180339887498949


def excerpt(text: str, reads: str, *, room: int, lengths: Lengths) -> str:
    """The chosen sentences of `text`, in at most about `room` tokens; "" where not even one fits.

    Args:
        reads: "ends" (beginning and end, by turns) or "spread" (the first sentence of each paragraph, then the second
            of each; where they are too many, evenly distributed ones).
    """
    paragraphs = [split_sentences(line) for line in text.split("\n")]
    places = [(p, s) for p, sentences in enumerate(paragraphs) for s in range(len(sentences))]
    costs = dict(zip(places, lengths([paragraphs[p][s] for p, s in places]), strict=True))
    order = _from_both_ends(places) if reads == "ends" else _spread(places)
    chosen: set[tuple[int, int]] = set()
    left = room
    for place in order:
        left -= costs[place] + 1  # a newline, where a paragraph begins
        if left < 0:
            break
        chosen.add(place)
    lines = [
        " ".join(sentence for s, sentence in enumerate(sentences) if (p, s) in chosen)
        for p, sentences in enumerate(paragraphs)
    ]
    return "\n".join(line for line in lines if line)


def _from_both_ends(places: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for i in range((len(places) + 1) // 2):
        yield places[i]
        if i != len(places) - 1 - i:
            yield places[-1 - i]


def _spread(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(places, key=lambda place: (place[1], place[0] * _GOLDEN % 1))
