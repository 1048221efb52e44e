"""One text before a network as it is: in training, on any device, in any precision, with adapters or in shares.

Why apart from `batch`: the network may be one that learns, wrapped and sharded; so each token is one call of it. It
is the plain way, and what `batch` is tested against.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from linnet.generate.batch import Text
from linnet.model.gpt2 import GPT2, KVCache


class Window:
    """A text before the network, and the keys and values of what was read of it."""

    def __init__(self, network: GPT2, text: Text) -> None:
        weight = network.wte.weight
        self.network = network
        self.text = text
        size = min(text.room, network.config.n_positions)
        self.cache = KVCache(network.config, size=size, device=weight.device, dtype=weight.dtype)

    def step(self) -> None:
        """One token."""
        with inference(self.network):
            logits = self._logits()
        token = self.text.draw(logits)
        if token is not None and self.text.row.append(token):
            self.cache.clear()

    def _logits(self) -> Tensor:
        """Scores [V] of the next token, on the CPU in fp32. Only what the cache lacks is computed."""
        new = torch.tensor([self.text.row.ids[self.cache.length :]], device=self.cache.keys.device)
        hidden = self.network(new, cache=self.cache)
        return self.network.logits(hidden[0, -1]).float().cpu()


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
