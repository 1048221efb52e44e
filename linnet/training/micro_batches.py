"""The micro-batches of one step, with fewer rows after running out of memory.

What   `MicroBatches` gives the loop one micro-batch after the other and watches over each.
Why    Memory that runs out in the middle of a step must cost a second and not the training: the step is done again
       from its first row with half as many rows at once. Its update is the same but for rounding, since the loss is a
       sum that is divided once by the step's weight.
How    for micro_batch in micro_batches:
           with micro_batches.watch() as losses:    # ends quietly where memory runs out, and the rows start over
               losses.append(loss(model, micro_batch))
               losses[-1].backward()
       What a failed attempt has added must be dropped: its gradients by `forget`, its graphs with `losses`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from linnet.errors import OutOfMemoryError, is_out_of_memory


class Rows(Protocol):
    """What is split: rows of a step."""

    @property
    def ids(self) -> Tensor: ...  # [B, T]
    def rows(self, start: int, stop: int) -> Self: ...
    def to(self, device: str) -> Self: ...


AnyRows = TypeVar("AnyRows", bound=Rows)


class MicroBatches(Generic[AnyRows]):
    """Rows of a step, `size` at a time, on `device`.

    Attributes:
        size: rows at a time; halves whenever they do not fit.
        losses: of each micro-batch so far, the sum over its learned tokens.
        start: the first row of the micro-batch at hand.
    """

    def __init__(
        self,
        batch: AnyRows,
        *,
        size: int,
        device: str,
        forget: Callable[[], None],
        repeats: bool = True,
    ) -> None:
        """`forget` drops the gradients of an attempt that failed. Without `repeats` the first failure is the end:
        other ranks take part in each forward pass and would wait for this one."""
        self.size = size
        self.losses: list[Tensor] = []
        self.start = 0
        self._batch, self._device, self._forget = batch, device, forget
        self._repeats = repeats
        self._failed = False

    def __iter__(self) -> Iterator[AnyRows]:
        """Raises OutOfMemoryError where a single row does not fit; nothing of the step is then left."""
        self.start = 0
        while self.start < len(self._batch.ids):
            yield self._batch.rows(self.start, self.start + self.size).to(self._device)
            if self._failed:
                self._start_over()
            else:
                self.start += self.size

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[Tensor]]:
        """Around the work on a micro-batch, whose loss is to be appended to what it gives."""
        try:
            yield self.losses
            self.losses[-1] = self.losses[-1].detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self._repeats:
                raise
            self._failed = True

    def _start_over(self) -> None:
        # Only here can the failed attempt's graph go: inside `watch` the exception still holds its frames.
        self._failed = False
        self.losses.clear()
        self._forget()
        if self._device == "cuda":
            torch.cuda.empty_cache()
        rows, tokens = self._batch.ids.shape
        tried = min(self.size, rows)
        if tried == 1:
            raise OutOfMemoryError(
                f"A single row of {tokens:,} tokens does not fit into memory; set "
                "train.activation_checkpointing=on, a smaller train.block_size, or see what fits with linnet plan."
            )
        self.size = -(-tried // 2)
        self.start = 0

    def loss(self) -> Tensor:
        """The sum over the micro-batches: a scalar on the device."""
        return torch.stack(self.losses).sum()

    def rows(self) -> list[int]:
        """All rows of the step."""
        return list(range(len(self._batch.ids)))

    def not_finite(self) -> list[int]:
        """Rows of the micro-batches whose loss is not finite."""
        rows = self.rows()
        starts = rows[:: self.size]
        bad = [s for s, loss in zip(starts, self.losses, strict=True) if not math.isfinite(float(loss))]
        return [row for start in bad for row in rows[start : start + self.size]]
