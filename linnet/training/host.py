"""Offload: master weights, gradients and moments in the machine's memory, on the card only what computes.

What   `HostOptimizer(model, ...)` moves a network onto the card with its matrices in 16 bits and keeps the fp32 masters
       here; to the loop it is an optimizer like any other, whose `parameters()` are the masters.
Why    A training holds 16 bytes for each weight: master, gradient and two moments of 4 bytes each. Of these the card
       needs 2, the copy that the products read. gpt2-medium then takes 0.7 GB of it instead of 5.7 GB.
How    A hook behind each parameter's gradient sends it over and frees it: the card never holds all of them. Here they
       are summed in fp32 over the micro-batches, the processor updates the masters, and the copies on the card are
       refreshed. Biases and norms, a thousandth of the weights, are in fp32 on both sides.

The same code runs with the CPU as the "card": tests compare it with the plain path there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linnet.model.gpt2 import GPT2
from linnet.training.optim import ADAM_BETAS, AdamW


@dataclass
class _Weight:
    """One trained parameter in its three places.

    Attributes:
        card: what the network computes with, on its device.
        master: fp32, in host memory; its `.grad` is `sum` once a gradient has come.
        sent: host memory of the card's dtype, pinned so that the card copies by itself: gradients come and weights go
            through it.
        arrived: when the last gradient has come; None on the CPU, where sending is waiting.
        waits: a gradient is in `sent`, or on its way there, and not yet in `sum`.
    """

    card: nn.Parameter
    master: nn.Parameter
    sum: Tensor
    sent: Tensor
    arrived: torch.cuda.Event | None
    waits: bool = False

    def send(self, card: Tensor) -> None:
        """Send the gradient of a micro-batch over and free it on the card."""
        assert card.grad is not None
        self.add()
        self.sent.copy_(card.grad, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()
        card.grad, self.waits = None, True

    def add(self) -> None:
        """Add what was sent to the sum over the micro-batches."""
        if not self.waits:
            return
        if self.arrived is not None:
            self.arrived.synchronize()
        if self.master.grad is None:
            self.master.grad = self.sum.copy_(self.sent)
        else:
            self.sum.add_(self.sent)
        self.waits = False

    def forget(self) -> None:
        """Drop the gradient, on either side or between them."""
        if self.waits and self.arrived is not None:
            self.arrived.synchronize()
        self.card.grad, self.waits = None, False

    def refresh(self) -> None:
        """Round the master and send it to the card."""
        self.card.copy_(self.sent.copy_(self.master), non_blocking=True)


class HostOptimizer:
    """AdamW over masters in host memory, for a network on `device`."""

    def __init__(
        self,
        model: GPT2,
        *,
        device: str,
        dtype: torch.dtype,
        weight_decay: float,
        betas: tuple[float, float] = ADAM_BETAS,
    ) -> None:
        """Moves `model`, which must be in fp32 on the CPU, to `device`, its trained matrices in `dtype`."""
        self._device = torch.device(device)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._weights = {name: self._split(p, dtype) for name, p in trained.items()}
        model.to(device)
        for embedding in (model.wte, model.wpe):
            if embedding.weight.requires_grad:  # The sums of the blocks are fp32, as over fp32 weights.
                embedding.register_forward_hook(_in_fp32)
        masters = {name: weight.master for name, weight in self._weights.items()}
        self.masters: dict[str, Tensor] = {name: master.detach() for name, master in masters.items()}
        self._adamw = AdamW(masters, weight_decay=weight_decay, betas=betas)

    def _split(self, parameter: nn.Parameter, dtype: torch.dtype) -> _Weight:
        master = nn.Parameter(parameter.detach())
        kind = dtype if parameter.ndim >= 2 else torch.float32
        on_card = self._device.type == "cuda"
        weight = _Weight(
            card=parameter,
            master=master,
            sum=torch.empty_like(master, requires_grad=False),
            sent=torch.empty(parameter.shape, dtype=kind, pin_memory=on_card),
            arrived=torch.cuda.Event() if on_card else None,  # type: ignore[no-untyped-call]
        )
        parameter.data = master.detach().to(self._device, kind, copy=True)
        parameter.register_post_accumulate_grad_hook(weight.send)  # type: ignore[no-untyped-call]
        return weight

    def set_learning_rate(self, value: float) -> None:
        self._adamw.set_learning_rate(value)

    @torch.no_grad()
    def step(self) -> None:
        self._adamw.step()
        for weight in self._weights.values():
            weight.refresh()

    @torch.no_grad()
    def parameters(self) -> list[Tensor]:
        """The masters; each has the sum of the gradients that have come."""
        for weight in self._weights.values():
            weight.add()
        return self._adamw.parameters()

    def zero_grad(self) -> None:
        self._adamw.zero_grad()
        for weight in self._weights.values():
            weight.forget()

    def state(self) -> dict[str, Tensor]:
        return self._adamw.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._adamw.load_state(state)


def _in_fp32(module: nn.Module, arguments: Any, vectors: Tensor) -> Tensor:
    return vectors.float()
