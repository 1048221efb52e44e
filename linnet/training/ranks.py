"""The processes that share a training: one, or several that torchrun has started.

What   `Ranks` is what the loop knows of the others: their number, sums over all, agreements.
Why    The loop is written once. For one process every method here does nothing.
How    Each rank computes its rows of the step (`linnet.data.batches`), then gradients and loss are summed; whatever
       follows from the sums is the same on all. `linnet.training.several` has the ranks that torchrun starts.
       All methods but the properties are for all ranks to call, in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from linnet.errors import Stopped


class Ranks:
    """One process alone."""

    rank = 0
    world = 1
    neighbours = 1
    """Processes that take their memory from one machine's, as this one does; a card's is its own."""
    lockstep = False
    """Whether each forward and backward pass needs all ranks (fsdp): then none may run it once more, or not at all."""

    def meet(self, signal_number: int = 0) -> None:
        """Wait until all are here.

        Raises:
            Stopped: on all ranks, where one of them brings the number of a signal that it has received.
        """
        if signal_number:
            raise Stopped.by(signal_number)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks; meets them first."""

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return flag

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        return number

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks, in their order."""
        return [text]

    def told(self, text: str) -> str:
        """The text of the first rank; the others wait for it."""
        return text

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank runs the block, then the others, who find there what it wrote."""
        yield

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of tensors that lie in shares on all ranks, the whole ones, in the first rank's memory; {} elsewhere."""
        return dict(tensors)


ALONE = Ranks()
