"""One text while it is written: which token comes next, what of it may be shown, and when it is over.

What   A `Writing` starts from the ids of a prompt. Whoever has the network asks it to `draw` from the scores of the
       next token, until it has ended; `take` gives what may be shown by then.
Why    A text is written in the same way alone, in a batch and while a model is still learning.
How    ids -> `text.Characters` -> `text.Beginning` -> `text.Stops` -> `text.Sentences` -> pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from linnet.generate.rows import ArticleRow, MovingRow, Row
from linnet.generate.sampling import Likely, Sampling, likeliest, next_token
from linnet.generate.text import Beginning, Characters, Sentences, Stops
from linnet.tokenizer import Tokenizer
from linnet.turns.layout import Layout
from linnet.turns.template import Turn, segment_ids

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    """Without the prompt."""
    tokens: int
    """How many tokens were drawn, without the prompt and the end token."""
    token_ids: list[int]
    """Their ids, with those of a text that was cut off."""
    finish_reason: FinishReason
    """`stop`: the model ended the text or a stop text came; `length`: max_new_tokens were written."""


@dataclass
class Piece:
    """What may be shown since the last piece. `likely`: how likely its tokens were, where that was asked for."""

    text: str = ""
    likely: list[Likely] = field(default_factory=list)


class Answer:
    """What is known of a text that answers turns.

    Attributes:
        prompt: the row that it starts from.
        left_out: how many whole turns did not fit in there.
        goes_on: beyond the window, as an article does.
    """

    def __init__(self, layout: Layout, turns: Sequence[Turn], *, reply: int, goes_on: bool) -> None:
        """`turns`: normalized; `reply`: ids that the answer may take."""
        kept = layout.fit(turns, reply=reply)
        self.layout = layout
        self.turns = turns
        self.prompt = layout.ask(kept)
        self.left_out = len(turns) - len(kept)
        self.goes_on = goes_on


class Steps(Protocol):
    """What puts a text before a network; `Batch` and `Window` are."""

    def step(self) -> None:
        """Do something for the text: at most one token is drawn."""


class Writing:
    """A text, from its prompt on.

    Attributes:
        prompt: the ids that it starts from.
        row: those that the network sees.
        tokens: the ids written so far.
        finish_reason: "" as long as it goes on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        n_positions: int,
        begin: Callable[[Writing], Steps],
        answer: Answer | None = None,
        choice: int = 0,
    ) -> None:
        """`begin` puts the text before a network, for `pieces` and `complete`.

        `choice`: which of several texts for one prompt and seed this is; each has numbers of its own to draw with.
        """
        self._begin = begin
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.seed = sampling.drawn_seed()
        self.choice = choice
        self.prompt = list(prompt)
        self.answer = answer
        self.row: Row = (
            ArticleRow(self.prompt, layout=answer.layout, turns=answer.turns)
            if answer and answer.goes_on
            else MovingRow(self.prompt, size=n_positions)
        )
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | Literal[""] = ""
        self._characters = Characters(tokenizer)
        self._beginning = Beginning(strip=answer is not None)
        self._stops = Stops(sampling.stops)
        self._sentences = Sentences(cut=sampling.end_at_sentence)
        self._piece = Piece()

    @property
    def room(self) -> int:
        """Most ids of prompt and text together."""
        return len(self.prompt) + self.sampling.max_new_tokens

    @cached_property
    def asked_tokens(self) -> int:
        """Ids of the prompt, had nothing been left out to make it fit the window."""
        if self.answer is None:
            return len(self.prompt)
        segments = self.answer.layout.template.prompt_segments(self.answer.turns)
        return len(segment_ids(self.tokenizer, segments)[0])

    @property
    def shortened(self) -> str:
        """The sentence that says what gave way so that the prompt fits the window; empty where all of it does."""
        if self.answer is None or len(self.prompt) >= self.asked_tokens:
            return ""
        tokens = f"{self.asked_tokens:,} to {len(self.prompt):,} tokens"
        turns = f"{self.answer.left_out} of {len(self.answer.turns)} turns are left out"
        what = f": {turns}" if self.answer.left_out else ""
        return f"The prompt was shortened from {tokens}, so that the answer fits{what}."

    def complete(self) -> Completion:
        """All of it at once."""
        text = "".join(self.pieces())
        assert self.finish_reason
        return Completion(text, len(self.tokens), self.tokens, self.finish_reason)

    def pieces(self, *, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The text in pieces that are certain, never empty; runs the model as they are asked for.

        `stop` is asked before each step; once it says yes the text stays as it is, without a finish_reason.
        """
        steps = self._begin(self)
        while not self.finish_reason and not stop():
            steps.step()
            if text := self.take().text:
                yield text

    def draw(self, logits: Tensor) -> int | None:
        """The next token, of scores [V]; None with the end token, after a stop text and after the last token."""
        sampling, end_of_text = self.sampling, self.tokenizer.end_of_text
        logits = logits[: self.tokenizer.vocab_size]  # ids beyond it are padding without a text
        token = next_token(
            logits,
            self._seen(),
            sampling=sampling,
            seed=self.seed,
            number=len(self.tokens),
            choice=self.choice,
            written=self.tokens,
        )
        if token == end_of_text:
            self._end("stop")
            return None
        if sampling.logprobs is not None:
            self._piece.likely.append(likeliest(logits, token, count=sampling.logprobs))
        self.tokens.append(token)
        text = self._characters.feed(token)
        self._piece.text += self._sentences.feed(self._stops.feed(self._beginning.feed(text)))
        if self._stops.found:
            self._end("stop")
        elif len(self.tokens) == sampling.max_new_tokens:
            self._end("length")
        return token if self.finish_reason == "" else None

    def take(self) -> Piece:
        """What came since the last call; with a text only what is certain, so never half a character."""
        piece, self._piece = self._piece, Piece()
        return piece

    def end(self) -> None:
        """End it here, as if no more tokens had been asked for; nothing happens where it has ended."""
        if not self.finish_reason:
            self._end("length")

    def _end(self, reason: FinishReason) -> None:
        rest = ""
        if not self._stops.found:
            # An unfinished character: U+FFFD, which may be a stop text.
            rest = self._stops.feed(self._beginning.feed(self._characters.finish()))
            if not self._stops.found:
                rest += self._stops.finish()
        self._piece.text += self._sentences.feed(rest) + self._sentences.finish()
        self.finish_reason = "stop" if self._stops.found else reason

    def _seen(self) -> Tensor:
        """The different ids in the row without end-of-text, where a repetition costs something."""
        if self.sampling.repetition_penalty == 1:
            return torch.empty(0, dtype=torch.long)
        return torch.tensor(sorted(set(self.row.ids) - {self.tokenizer.end_of_text}), dtype=torch.long)
