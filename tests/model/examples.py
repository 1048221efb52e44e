"""Small real things that the tests of model and generate share: networks, a tokenizer, batches."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.tokenizer import Tokenizer, train_bpe

TEXT = (
    "The linnet learns its song by listening. It sings 3.14 times, e.g. at dawn — “naïve”, says Dr. Öztürk! "
    "日本語の文。絵文字 🐦🎶 too. It was a bright cold day in April, and the clocks were striking thirteen.\n"
) * 3


# The published sizes; 124, 355, 774 and 1,558 million weights.
SIZES = {
    "gpt2": GPT2Config(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}


def tiny(seed: int = 0, **changes: int) -> GPT2:
    """A random GPT-2 of two layers, larger than life: at 0.02 all its scores would be nearly equal."""
    shape = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4} | changes
    model = GPT2(GPT2Config(**shape), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 300 ids; most of them are single bytes, so characters are spread over tokens."""
    return train_bpe(iter([TEXT]), vocab_size=300)


@dataclass(frozen=True)
class Rows:
    """Packed rows, as `next_token_loss` reads them."""

    ids: Tensor
    targets: Tensor
    learn: Tensor
    positions: Tensor
    lengths: list[list[int]]

    def segments(self) -> list[list[int]] | None:
        return None if all(len(row) == 1 for row in self.lengths) else self.lengths

    def learned(self) -> Tensor | None:
        return self.learn.flatten().nonzero().squeeze(1)

    def rows(self, start: int, stop: int) -> "Rows":
        parts = (tensor[start:stop] for tensor in (self.ids, self.targets, self.learn, self.positions))
        return Rows(*parts, self.lengths[start:stop])


def packed(lengths: list[list[int]], *, size: int, vocab_size: int = 300, seed: int = 0) -> Rows:
    """Random rows with examples of these lengths, about a third of the targets only read."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), size)
    ids, targets = (torch.randint(vocab_size, shape, generator=generator) for _ in range(2))
    learn = torch.rand(shape, generator=generator) > 0.3
    positions = torch.zeros(shape, dtype=torch.long)
    for row, sizes in enumerate(lengths):
        restart = torch.cat([torch.arange(n) for n in sizes])
        positions[row, : len(restart)] = restart
        learn[row, len(restart) :] = False
    return Rows(ids, targets, learn, positions, lengths)
