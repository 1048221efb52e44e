"""Turns of a conversation as segments of text: the one form of everything that has a question and an answer.

What   `Turn`, `Segment`, `Template`. A template gives each role a header: `user:` + ` Hi` + `\\nassistant:` + ` Hello`.
Why    Training, generation and transformers' `apply_chat_template` must end in the same ids.
How    A header is a segment, a content is one; each is encoded by itself and the ids are joined. The space at the seam
       belongs to the content. Behind each of the assistant's turns stands end-of-text, so that a model learns to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Turn(NamedTuple):
    """What one role says. Roles are `system`, `user`, `assistant`, `tool`; a template gives them their names."""

    role: str
    text: str


class Segment(NamedTuple):
    """A piece of an example; `learn=False` is read but not trained on; `ends`: end-of-text follows, learned as it is."""

    text: str
    learn: bool
    ends: bool = False


Example = list[Segment]


@dataclass(frozen=True)
class Template:
    """The header of each role. Contents of `assistant` are what is to be written.

    `instruct` and `chat` have system:, user:, assistant:, tool:. `papers` names the same roles title:, abstract:,
    article: (system, user, assistant), and with data.target=abstract title:, article:, abstract:.
    """

    headers: Mapping[str, str]

    def segments(self, turns: Sequence[Turn], *, learn: str = "answers") -> Example:
        """Header and content of each turn in order; `learn` is "answers" or "all"."""
        raise NotImplementedError
