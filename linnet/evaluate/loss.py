"""Held-out loss: how surprised a model is by text it has not learned from.

What   The mean cross entropy over the learned tokens of a validation store, in nats.
Why    It is the number by which the best model is kept, and the one to compare models of one tokenizer with.
How    The same rows in the same order at every call; the loss is the one that training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from linnet.data.batches import Batch
from linnet.device import autocast


@torch.no_grad()
def held_out_loss(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    *,
    loss: Callable[[Any, Any], Tensor],
    device: str,
    precision: str,
    check_stop: Callable[[], None] = lambda: None,
    add_up: Callable[[list[Tensor]], None] = lambda tensors: None,
) -> tuple[float, int]:
    """Mean loss per learned token, and the number of learned tokens.

    Args:
        batches: rows in order, see `linnet.data.batches.validation_batches`.
        loss: the sum over a batch's learned tokens, as in training.
        check_stop: called before each batch; may raise to give the evaluation up.
        add_up: replaces tensors by their sum over several processes, where each has its part of the batches.
    """
    was_training = model.training
    model.eval()
    try:
        total, count = 0.0, 0
        for batch in batches:
            check_stop()
            with autocast(precision, device):
                total += float(loss(model, batch.to(device)))
            count += int(batch.learn.sum())
    finally:
        model.train(was_training)
    totals = torch.tensor([total, count], dtype=torch.float64)
    add_up([totals])
    total, count = float(totals[0]), int(totals[1])
    return total / max(count, 1), count
