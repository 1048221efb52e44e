"""A model that writes: prompt in, text out, whole or as a stream.

Why: published helpers for such models echo the prompt, count it as output, run past the end token, show half
characters and fail at the last position. What each does right here is one small part: `sampling` (which
token), `text` (what may be shown), `Window` (which tokens the model sees).
How: the prompt goes through the model once and leaves its keys and values in a cache; then each new token is one
short pass. When the window is full it moves on by a quarter and is read again from there: learned positions
cannot be shifted in the cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor

from linnet.errors import UsageError
from linnet.generate.sampling import Sampling, SamplingOptions, next_token
from linnet.generate.text import Characters, Sentences, Stops
from linnet.model.gpt2 import GPT2, KVCache
from linnet.model.pretrained import check_vocabulary
from linnet.tokenizer import Tokenizer

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
    """

    def __init__(self, network: GPT2, tokenizer: Tokenizer) -> None:
        check_vocabulary(network, tokenizer)
        self.network = network
        self.tokenizer = tokenizer

    def generate(self, prompt: str, **options: Unpack[SamplingOptions]) -> str:
        """Continue `prompt`; returns the text without it.

        Options, with their defaults: max_new_tokens=200, temperature=0.8 (0: always the likeliest token),
        top_k=None, top_p=0.95, min_p=0.0, repetition_penalty=1.0, stop=() (a text or several), seed="random"
        (a number gives the same text again), end_at_sentence=False. `Sampling` says what each does; a value out
        of range is a UsageError that names it. An empty prompt starts a new text.
        """
        return self.complete(prompt, **options).text

    def stream(self, prompt: str, **options: Unpack[SamplingOptions]) -> Iterator[str]:
        """`generate` piece by piece: the same text when joined. A piece is never empty, nor half a character."""
        writing = Writing(self, prompt, Sampling(**options))
        return writing.pieces()

    def complete(self, prompt: str, **options: Unpack[SamplingOptions]) -> Completion:
        """`generate` with the tokens and the reason of the end."""
        writing = Writing(self, prompt, Sampling(**options))
        text = "".join(writing.pieces())
        return Completion(text, len(writing.tokens), writing.tokens, writing.finish_reason)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids that a text starts from: the tokenizer's prefix and the prompt; never empty."""
        ids = self.tokenizer.prefix + self.tokenizer.encode(prompt)
        return ids or [self.tokenizer.end_of_text]


class Writing:
    """One text while it is written."""

    def __init__(self, model: Model, prompt: str, sampling: Sampling) -> None:
        if not isinstance(prompt, str):
            raise UsageError(f"prompt is {prompt!r}, but must be a text.")
        self.model = model
        self.sampling = sampling
        self.seed = sampling.drawn_seed()
        self.prompt = model.encode_prompt(prompt)
        self.tokens: list[int] = []
        self.finish_reason: FinishReason = "length"

    def pieces(self) -> Iterator[str]:
        """The text in pieces that are certain; runs the model as they are asked for."""
        characters = Characters(self.model.tokenizer)
        stops = Stops(self.sampling.stops)
        sentences = Sentences(cut=self.sampling.end_at_sentence)
        for token in self.draw_tokens():
            piece = sentences.feed(stops.feed(characters.feed(token)))
            if piece:
                yield piece
            if stops.found:
                break
        rest = ""
        if not stops.found:
            rest = stops.feed(
                characters.finish()
            )  # an unfinished character: U+FFFD, which may be a stop text
            if not stops.found:
                rest += stops.finish()
        if stops.found:
            self.finish_reason = "stop"
        rest = sentences.feed(rest) + sentences.finish()
        if rest:
            yield rest

    def draw_tokens(self) -> Iterator[int]:
        """At most `max_new_tokens` tokens; ends before the end token."""
        window = Window(self.model.network, room=len(self.prompt) + self.sampling.max_new_tokens)
        ids = list(self.prompt)
        end_of_text = self.model.tokenizer.end_of_text
        no_tokens = torch.empty(0, dtype=torch.long)
        for number in range(self.sampling.max_new_tokens):
            with inference(self.model.network):
                logits = window.logits(ids)
            logits = logits[: self.model.tokenizer.vocab_size]  # ids beyond it are padding without a text
            seen = window.seen(ids, but=end_of_text) if self.sampling.repetition_penalty != 1 else no_tokens
            token = next_token(logits, seen, sampling=self.sampling, seed=self.seed, number=number)
            if token == end_of_text:
                self.finish_reason = "stop"
                return
            self.tokens.append(token)
            ids.append(token)
            yield token


class Window:
    """The tokens that the model sees, and their keys and values.

    Of n tokens it sees those from `window_start(n)`, which depends on n alone: so a text goes on in the same way
    whether its beginning was a prompt or written by the model.
    """

    def __init__(self, network: GPT2, *, room: int) -> None:
        weight = network.wte.weight
        self.network = network
        self.size = network.config.n_positions
        self.cache = KVCache(
            network.config, size=min(room, self.size), device=weight.device, dtype=weight.dtype
        )
        self.start = 0

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Scores [V] of the token after `ids`, on the CPU in fp32. Only what the cache lacks is computed."""
        start = window_start(len(ids), size=self.size)
        if start != self.start:
            self.cache.clear()
            self.start = start
        new = torch.tensor([ids[start + self.cache.length :]], device=self.cache.keys.device)
        hidden = self.network(new, cache=self.cache)
        return self.network.logits(hidden[0, -1]).float().cpu()

    def seen(self, ids: Sequence[int], *, but: int) -> Tensor:
        """The different ids in the window, without the id `but`."""
        return torch.tensor(sorted(set(ids[self.start :]) - {but}), dtype=torch.long)


def window_start(length: int, *, size: int) -> int:
    """The first of `length` tokens in a window of `size`: 0, then in steps of a quarter window.

    Example: size 8: up to 8 tokens 0, for 9 and 10 tokens 2, for 11 and 12 tokens 4.
    """
    step = max(1, size // 4)
    return max(0, -(-(length - size) // step) * step)


@contextmanager
def inference(network: GPT2) -> Iterator[None]:
    """Without gradients and dropout; a network in training goes back to it."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)
