"""A model that writes: prompt in, text out, whole or as a stream.

Why: published helpers for such models echo the prompt, count it as output, run past the end token, show half
characters and fail at the last position. What each does right here is one small part: `prompts` (what is read),
`sampling` (which token), `text` (what may be shown), `rows` (which tokens the model sees), `writing` (one text).
How: the prompt goes through the model once and leaves its keys and values in a memory; then each new token is one
short pass (`decoder`, many texts at once in `batch`). When the window is full, its row makes room and is read again.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Unpack

import torch

from linnet.generate.batch import Batch
from linnet.generate.decoder import MOST_READ, Decoder
from linnet.generate.prompt_cache import PromptCache
from linnet.generate.prompts import Asked, WritingOptions
from linnet.generate.sampling import Likely, Sampling, SamplingOptions, likeliest
from linnet.generate.window import Window
from linnet.generate.writing import Answer, Completion, Writing
from linnet.model.gpt2 import GPT2
from linnet.model.pretrained import check_vocabulary
from linnet.tokenizer import Tokenizer
from linnet.turns.layout import Layout
from linnet.turns.template import Template

PROMPT_CACHE = 2**27
"""Bytes of prompts that are kept for the next ones: 1,800 tokens of `gpt2` in fp32."""


class Model:
    """A network with its tokenizer, ready to write.

    The network is used where it lies and as it is (device, dtype), as the training loop passes its own; with a
    `decoder` of it, as `linnet.load` gives one, writing is quicker. A tokenizer with more ids than the network is a
    LinnetError.
    `template`: that of a model trained on turns; None: a prompt is text that goes on. `reads`: the recipe's
    data.reads, what of an article too long is read to summarize it. `block_size`: of its training, where that is known
    and smaller than the window: an article that goes on is composed in rows of that size.
    """

    def __init__(
        self,
        network: GPT2,
        tokenizer: Tokenizer,
        *,
        decoder: Decoder | None = None,
        template: Template | None = None,
        reads: str = "start",
        block_size: int | None = None,
    ) -> None:
        check_vocabulary(network, tokenizer)
        self.network = network
        self.decoder = decoder
        self.prompts = PromptCache(most_bytes=PROMPT_CACHE)
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

    def start(self, prompt: str = "", **options: Unpack[WritingOptions]) -> Writing:
        """A text that is not written yet, but whose prompt is laid out."""
        asked = Asked(
            prompt,
            system=options.pop("system", ""),
            messages=options.pop("messages", ()),
            raw=options.pop("raw", False),
            continue_sections=options.pop("continue_sections", False),
        )
        choice = options.pop("choice", 0)
        sampling_options: SamplingOptions = options
        sampling = Sampling(**sampling_options)
        turns = asked.turns(self.template)
        layout = self.training_layout if asked.continue_sections else self.layout
        answer = None
        if turns is not None and layout is not None:
            answer = Answer(layout, turns, reply=sampling.max_new_tokens, goes_on=asked.continue_sections)
        ids = self._encode_raw(prompt) if answer is None else answer.prompt
        return self.write(ids, sampling, answer=answer, choice=choice)

    def write(
        self, prompt: Sequence[int], sampling: Sampling, *, answer: Answer | None = None, choice: int = 0
    ) -> Writing:
        """A text that goes on from these ids."""
        return Writing(
            self.tokenizer,
            prompt,
            sampling,
            n_positions=self.network.config.n_positions,
            begin=self._begin,
            answer=answer,
            choice=choice,
        )

    @torch.inference_mode()
    def score(self, ids: Sequence[int], *, top: int) -> list[Likely]:
        """How likely each of `ids` was but the first, with the `top` likeliest in its place; a window at the most.

        Needs a decoder.
        """
        assert self.decoder is not None
        memory = self.decoder.memory(room=len(ids))
        found: list[Likely] = []
        for start in range(0, len(ids) - 1, MOST_READ):
            part = ids[start : min(start + MOST_READ, len(ids) - 1)]
            logits = self.decoder.scores(self.decoder.read(part, memory))[:, : self.tokenizer.vocab_size]
            following = ids[start + 1 : start + 1 + len(part)]
            found += [likeliest(row, token, count=top) for row, token in zip(logits, following, strict=True)]
        return found

    def _begin(self, writing: Writing) -> Batch | Window:
        if self.decoder is None:
            return Window(self.network, writing)
        batch = Batch(self.decoder, prompts=self.prompts)
        batch.add(writing)
        return batch

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
