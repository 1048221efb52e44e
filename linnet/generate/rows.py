"""Which ids the model sees: a row that takes in what is written, and makes room when it is full.

Why: a GPT-2 sees n_positions ids and no more, and its learned positions cannot be shifted in the cache.
How: `MovingRow` drops its oldest quarter, for any text. `ArticleRow` is composed anew, the way the training cut such an
article: title, abstract, the headings so far, then the last of what was written.
"""

from collections.abc import Sequence
from typing import Protocol

from linnet.turns.layout import Layout, headings
from linnet.turns.template import ANSWERER, Turn


class Row(Protocol):
    """The ids that the model sees now; at most n_positions, and the token after them is wanted."""

    ids: list[int]

    def append(self, token: int) -> bool:
        """Take in a token; True where the ids before it have changed, so that all must be read again."""
        ...


class MovingRow:
    """The last ids of a text.

    Of n ids it holds those from `window_start(n)`, which depends on n alone: so a text goes on in the same way
    whether its beginning was a prompt or written by the model.
    """

    def __init__(self, ids: Sequence[int], *, size: int) -> None:
        self.size = size
        self.ids = list(ids[window_start(len(ids), size=size) :])

    def append(self, token: int) -> bool:
        self.ids.append(token)
        if len(self.ids) <= self.size:
            return False
        del self.ids[: window_start(len(self.ids), size=self.size)]
        return True


def window_start(length: int, *, size: int) -> int:
    """The first of `length` tokens in a window of `size`: 0, then in steps of a quarter window.

    Example: size 8: up to 8 tokens 0, for 9 and 10 tokens 2, for 11 and 12 tokens 4.
    """
    step = max(1, size // 4)
    return max(0, -(-(length - size) // step) * step)


class ArticleRow:
    """The window of an article in which it is written on; the windows are those of its training (data/windows.py).

    A window that is full is cut after a paragraph, a sentence or a word in its last quarter. The next one repeats what
    came before the cut, as context, and holds what came after it: nothing is written twice, nothing is lost.

    Attributes:
        written: all ids of the article.
        done: how many of them stood before this window's own.
    """

    def __init__(self, prompt: Sequence[int], *, layout: Layout, turns: Sequence[Turn]) -> None:
        """`layout`: with a size of n_positions + 1, since the last id of a row is predicted and never read."""
        self.ids = list(prompt)
        self.written: list[int] = []
        self.done = 0
        self.layout = layout
        self.carried = layout.carry(layout.parts(turns), ANSWERER)

    def append(self, token: int) -> bool:
        self.ids.append(token)
        self.written.append(token)
        if len(self.ids) < self.layout.size:
            return False
        room = len(self.written) - self.done
        self.done = self.layout.cut(self.written, self.done + room * 3 // 4, len(self.written))
        before = self.written[: self.done]
        names = headings(self.layout.tokenizer.decode(before))
        row = self.layout.go_on(self.carried, ANSWERER, before, names)
        self.ids = row + self.written[self.done :]
        return True
