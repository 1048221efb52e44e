"""A model that writes: prompt in, text out, whole or as a stream.

Why: published helpers for such models echo the prompt, count it as output, run past the end token, show half
characters and fail at the last position. What each does right here is one small part: `prompts` (what is read),
`sampling` (which token), `text` (what may be shown), `rows` (which tokens the model sees).
How: the prompt goes through the model once and leaves its keys and values in a cache; then each new token is one
short pass. When the window is full, its row makes room and is read again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Unpack

import torch
from torch import Tensor

from linnet.generate.prompts import Asked, WritingOptions
from linnet.generate.rows import ArticleRow, MovingRow, Row
from linnet.generate.sampling import Sampling, SamplingOptions, next_token
from linnet.generate.text import Beginning, Characters, Sentences, Stops
from linnet.model.gpt2 import GPT2, KVCache
from linnet.model.pretrained import check_vocabulary
from linnet.tokenizer import Tokenizer
from linnet.turns.layout import Layout
from linnet.turns.template import Template, Turn, segment_ids

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


class Model:
    """A network with its tokenizer, ready to write.

    The network is used where it lies and as it is (device, dtype): `linnet.load` prepares one, and the training
    loop passes its own. A tokenizer with more ids than the network is a LinnetError.
    `template`: that of a model trained on turns; None: a prompt is text that goes on. `reads`: the recipe's
    data.reads, what of an article too long is read to summarize it. `block_size`: of its training, where that is known
    and smaller than the window: an article that goes on is composed in rows of that size.
    """

    def __init__(
        self,
        network: GPT2,
        tokenizer: Tokenizer,
        *,
        template: Template | None = None,
        reads: str = "start",
        block_size: int | None = None,
    ) -> None:
        check_vocabulary(network, tokenizer)
        self.network = network
        self.tokenizer = tokenizer
        self.template = template
        self.reads = reads
        self.block_size = block_size

    def generate(self, prompt: str = "", **options: Unpack[WritingOptions]) -> str:
        """Answer `prompt`, or continue it where the model has no template; returns the text without it.

        Options, with their defaults: max_new_tokens=200, temperature=0.8 (0: always the likeliest token),
        top_k=None, top_p=0.95, min_p=0.0, repetition_penalty=1.0, stop=() (a text or several), seed="random"
        (a number gives the same text again), end_at_sentence=False. `Sampling` says what each does; a value out
        of range is a UsageError that names it. An empty prompt starts a new text.
        With a template: system="" (a turn before the prompt), messages=() (a whole conversation of
        {"role", "content"} in place of both), raw=False (True: the prompt as it is, without the template),
        continue_sections=False (True: an article goes on beyond the window). `Asked` says more.
        """
        return self.complete(prompt, **options).text

    def stream(self, prompt: str = "", **options: Unpack[WritingOptions]) -> Iterator[str]:
        """`generate` piece by piece: the same text when joined. A piece is never empty, nor half a character."""
        return self.start(prompt, **options).pieces()

    def complete(self, prompt: str = "", **options: Unpack[WritingOptions]) -> Completion:
        """`generate` with the tokens and the reason of the end."""
        return self.start(prompt, **options).complete()

    def start(self, prompt: str = "", **options: Unpack[WritingOptions]) -> "Writing":
        """A text that is not written yet, but whose prompt is laid out."""
        asked = Asked(
            prompt,
            system=options.pop("system", ""),
            messages=options.pop("messages", ()),
            raw=options.pop("raw", False),
            continue_sections=options.pop("continue_sections", False),
        )
        sampling_options: SamplingOptions = options
        sampling = Sampling(**sampling_options)
        turns = asked.turns(self.template)
        layout = self.training_layout if asked.continue_sections else self.layout
        if turns is None or layout is None:
            return Writing(self, self._encode_raw(prompt), sampling)
        answer = Answer(layout, turns, reply=sampling.max_new_tokens, goes_on=asked.continue_sections)
        return Writing(self, answer.prompt, sampling, answer=answer)

    def encode_prompt(self, prompt: str = "", **options: Unpack[WritingOptions]) -> list[int]:
        """Ids that a text starts from, never empty: end-of-text, the turns and the header of the answer.

        Without a template the tokenizer's prefix and the prompt.
        """
        return self.start(prompt, **options).prompt

    @cached_property
    def layout(self) -> Layout | None:
        """How turns lie in the window: n_positions ids that are read, and one more that is predicted."""
        return self._layout(self.network.config.n_positions)

    @cached_property
    def training_layout(self) -> Layout | None:
        """The same in the rows of the training, which may be smaller."""
        return self._layout(
            min(self.block_size or self.network.config.n_positions, self.network.config.n_positions)
        )

    def _layout(self, positions: int) -> Layout | None:
        if self.template is None:
            return None
        return Layout(self.template, self.tokenizer, size=positions + 1, reads=self.reads)

    def _encode_raw(self, prompt: str) -> list[int]:
        return self.tokenizer.prefix + self.tokenizer.encode(prompt) or [self.tokenizer.end_of_text]


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


class Writing:
    """One text while it is written.

    Attributes:
        prompt: the ids that it starts from.
        tokens: the ids written so far.
    """

    def __init__(
        self, model: Model, prompt: Sequence[int], sampling: Sampling, *, answer: Answer | None = None
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.seed = sampling.drawn_seed()
        self.prompt = list(prompt)
        self.answer = answer
        self.tokens: list[int] = []
        self.finish_reason: FinishReason = "length"

    @property
    def asked_tokens(self) -> int:
        """Ids of the prompt, had nothing been left out to make it fit the window."""
        if self.answer is None:
            return len(self.prompt)
        segments = self.answer.layout.template.prompt_segments(self.answer.turns)
        return len(segment_ids(self.model.tokenizer, segments)[0])

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
        return Completion(text, len(self.tokens), self.tokens, self.finish_reason)

    def pieces(self) -> Iterator[str]:
        """The text in pieces that are certain; runs the model as they are asked for."""
        characters = Characters(self.model.tokenizer)
        beginning = Beginning(strip=self.answer is not None)
        stops = Stops(self.sampling.stops)
        sentences = Sentences(cut=self.sampling.end_at_sentence)
        for token in self.draw_tokens():
            piece = sentences.feed(stops.feed(beginning.feed(characters.feed(token))))
            if piece:
                yield piece
            if stops.found:
                break
        rest = ""
        if not stops.found:
            # An unfinished character: U+FFFD, which may be a stop text.
            rest = stops.feed(beginning.feed(characters.finish()))
            if not stops.found:
                rest += stops.finish()
        if stops.found:
            self.finish_reason = "stop"
        rest = sentences.feed(rest) + sentences.finish()
        if rest:
            yield rest

    def draw_tokens(self) -> Iterator[int]:
        """At most `max_new_tokens` tokens; ends before the end token."""
        room = len(self.prompt) + self.sampling.max_new_tokens
        window = Window(self.model.network, self._row(), room=room)
        end_of_text = self.model.tokenizer.end_of_text
        no_tokens = torch.empty(0, dtype=torch.long)
        for number in range(self.sampling.max_new_tokens):
            with inference(self.model.network):
                logits = window.logits()
            logits = logits[: self.model.tokenizer.vocab_size]  # ids beyond it are padding without a text
            seen = window.seen(but=end_of_text) if self.sampling.repetition_penalty != 1 else no_tokens
            token = next_token(logits, seen, sampling=self.sampling, seed=self.seed, number=number)
            if token == end_of_text:
                self.finish_reason = "stop"
                return
            self.tokens.append(token)
            window.append(token)
            yield token

    def _row(self) -> Row:
        if self.answer and self.answer.goes_on:
            return ArticleRow(self.prompt, layout=self.answer.layout, turns=self.answer.turns)
        return MovingRow(self.prompt, size=self.model.network.config.n_positions)


class Window:
    """A row before the network, and the keys and values of what was read of it."""

    def __init__(self, network: GPT2, row: Row, *, room: int) -> None:
        weight = network.wte.weight
        self.network = network
        self.row = row
        size = min(room, network.config.n_positions)
        self.cache = KVCache(network.config, size=size, device=weight.device, dtype=weight.dtype)

    def append(self, token: int) -> None:
        """Take in a token."""
        if self.row.append(token):
            self.cache.clear()

    def logits(self) -> Tensor:
        """Scores [V] of the next token, on the CPU in fp32. Only what the cache lacks is computed."""
        new = torch.tensor([self.row.ids[self.cache.length :]], device=self.cache.keys.device)
        hidden = self.network(new, cache=self.cache)
        return self.network.logits(hidden[0, -1]).float().cpu()

    def seen(self, *, but: int) -> Tensor:
        """The different ids in the window, without the id `but`."""
        return torch.tensor(sorted(set(self.row.ids) - {but}), dtype=torch.long)


@contextmanager
def inference(network: GPT2) -> Iterator[None]:
    """Without gradients and dropout; a network in training goes back to it."""
    training = network.training
    if training:  # Going through all modules for each token takes as long as a layer of a small model.
        network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            network.train()
