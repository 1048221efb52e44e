"""Held-out loss and what follows from it: perplexity and bits per byte.

What   `Score`, `measure`. All of it comes from one sum: the nats of the tokens that are learned.
Why    Loss per token says nothing between two tokenizers: with longer tokens there are fewer of them, and each is
       harder. Bits per byte divide the same nats by the text that they describe.
How    With n learned tokens of the probabilities p_1 ... p_n, which stand for b bytes of text:

           loss          = -(ln p_1 + ... + ln p_n) / n      nats per learned token
           perplexity    = exp(loss)
           bits_per_byte = loss * n / (ln 2 * b)

       b counts the UTF-8 bytes of the learned tokens. End-of-text stands for 0 bytes, and its nats count: to say
       where a text ends is part of describing it, and every tokenizer has the same number of ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from linnet.data.batches import Batch
from linnet.errors import LinnetError
from linnet.evaluate.loss import held_out_loss
from linnet.model.gpt2 import GPT2
from linnet.model.loss import next_token_loss


@dataclass(frozen=True)
class Score:
    """What a model makes of some text.

    Attributes:
        loss: nats per learned token.
        tokens: tokens that were read or predicted, without padding and without what only repeats for context.
        learned_tokens: those that the loss is the mean of.
        bytes: of the text that the learned tokens stand for, in UTF-8.
    """

    loss: float
    tokens: int
    learned_tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Nats of all learned tokens / ln 2 / bytes; None where only ends of text are learned."""
        return self.loss * self.learned_tokens / math.log(2) / self.bytes if self.bytes else None


def measure(
    network: GPT2,
    batches: Iterable[Batch],
    *,
    byte_lengths: Sequence[int],
    precision: str,
    observe: Callable[[int], None] = lambda tokens: None,
) -> Score:
    """Score `network` on `batches`.

    Args:
        byte_lengths: bytes that each id stands for, `Tokenizer.byte_lengths`.
        observe: called behind each batch with the tokens so far.

    Raises:
        LinnetError: nothing in the batches is learned, or the loss is not a number.
    """
    lengths = np.asarray(byte_lengths, np.int64)
    tokens = text_bytes = 0

    def counted() -> Iterator[Batch]:
        nonlocal tokens, text_bytes
        for batch in batches:
            yield batch
            tokens += batch.tokens
            text_bytes += int(lengths[batch.targets[batch.learn].numpy()].sum())
            observe(tokens)

    device = network.wte.weight.device.type
    loss, learned = held_out_loss(
        network, counted(), loss=next_token_loss, device=device, precision=precision
    )
    if not learned:
        raise LinnetError("There is no token in it that is learned, so nothing to measure; give more text.")
    if not math.isfinite(loss):
        raise LinnetError(f"The loss is {loss}: the weights are damaged, or too large for {precision}.")
    return Score(loss, tokens, learned, text_bytes)
