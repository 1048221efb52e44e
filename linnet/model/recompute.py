"""Activation checkpointing: of each block only its input is kept, the rest is computed again in the backward pass.

Why: what backward needs of the blocks is most of a training's memory; a block's input is a small part of it. The price
is two thirds of the blocks' forward products: the second time stops at the last tensor that is needed.
How: torch's hooks for saved tensors. The first time each tensor that a block saves is replaced by its number; when
backward asks for the first of them, the block runs again and all are there. `torch.utils.checkpoint` does the same, but
its first call imports torch's compiler: 4 s on two cores. The numbers are the same bits, dropout and autocast included.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def recomputed(block: Callable[..., Tensor], x: Tensor, **rest: Any) -> Tensor:
    """block(x, **rest), of which backward keeps `x` alone. For `GPT2.run_block`."""
    if not torch.is_grad_enabled():
        return block(x, **rest)
    again = _Again(block, x, rest)
    with saved_tensors_hooks(again.forget, again.recall):
        return block(x, **rest)


class _Again:
    """One run of a block, to be repeated."""

    def __init__(self, block: Callable[..., Tensor], x: Tensor, rest: dict[str, Any]) -> None:
        self._block, self._x, self._rest = block, x, rest
        self._saved = 0
        self._made: dict[int, Tensor] = {}
        device_type = x.device.type
        self._autocast = torch.autocast(
            device_type,
            dtype=torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
        )
        self._draws = isinstance(block, nn.Module) and block.training and bool(getattr(block, "dropout", 0.0))
        self._random = _random_state(x.device) if self._draws else None

    def forget(self, tensor: Tensor) -> int:
        """A tensor is to be saved: keep its number."""
        self._saved += 1
        return self._saved - 1

    def recall(self, number: int) -> Tensor:
        """Backward wants a saved tensor; each is wanted once and is freed then."""
        if number not in self._made:
            self._run()
        return self._made.pop(number)

    def _run(self) -> None:
        self._made.clear()
        x = self._x.detach().requires_grad_(self._x.requires_grad)
        cards = [x.device] if x.device.type == "cuda" else []
        with torch.enable_grad(), self._autocast, torch.random.fork_rng(cards, enabled=self._draws):
            if self._random is not None:
                _set_random_state(x.device, self._random)
            try:
                with saved_tensors_hooks(self._keep, lambda nothing: nothing):
                    self._block(x, **self._rest)
            except _EnoughError:
                pass
        assert len(self._made) == self._saved, "a block saved other tensors the second time"

    def _keep(self, tensor: Tensor) -> None:
        """Nothing goes into the second graph, which never runs: what an operation saves of its own result would keep
        that graph, and so itself, for ever (attention's, 40 MB a block of 4,096 tokens)."""
        self._made[len(self._made)] = tensor.detach()
        if len(self._made) == self._saved:
            raise _EnoughError


class _EnoughError(Exception):
    """All that backward needs is there; what the block computes behind it is not needed."""


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
