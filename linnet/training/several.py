"""The ranks that torchrun starts: how they find each other, add up, agree, and end together.

What   `join()` gives the loop its `Ranks`: `torchrun --nproc-per-node 2 -m linnet train ...`.
Why    The sum of the gradients is our own instead of DistributedDataParallel's. The loss is a sum that is divided once,
       by the learned tokens of the whole step, which the ranks have in unequal parts; the tied head is used outside of
       `forward`; and a rank that runs out of memory does its rows again while the others wait in the sum. A wrapper
       that sums amid the backward pass would already have sent half of the gradients that are to be dropped.
How    Gradients go in buckets of 25 MB, flattened, two of them under way at a time (gloo on CPUs, nccl on cards).
       Everything else (agreements, texts, waiting for the first rank's disk) goes over gloo between the hosts: there a
       process that dies closes its connections, and all others end at once instead of waiting for a timeout. nccl does
       not notice, so all meet on the hosts before each of its sums.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from linnet.errors import DivergedError, LinnetError, Stopped, UsageError
from linnet.training.ranks import ALONE, Ranks
from linnet.training.shards import is_sharded, whole

BUCKET_BYTES = 25 * 10**6
JOINING = timedelta(minutes=5)
# The first rank may prepare data for hours while the others wait; one that dies is noticed without a timeout.
PATIENCE = timedelta(days=2)
ON_CARDS = timedelta(seconds=45)  # All ranks have just met when a sum over nccl begins.
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class Several(Ranks):
    """One of several processes."""

    def __init__(self, store: Any, *, rank: int, world: int, device: str) -> None:
        self.rank, self.world, self.device = rank, world, device
        self.lockstep = False
        self.neighbours = 1 if device == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._store = store
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=JOINING)
        self._hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.group = dist.new_group(backend="nccl", timeout=ON_CARDS) if device == "cuda" else self._hosts
        """What sums the gradients."""

    def meet(self, signal_number: int = 0) -> None:
        signal_number = self._extreme(signal_number, dist.ReduceOp.MAX)
        if signal_number:
            raise Stopped.by(signal_number)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """fsdp has summed the gradients that lie in shares: they are left as they are."""
        if self.device == "cuda":
            torch.cuda.synchronize()  # nccl's clock would run while the card still computes.
        self.meet()
        under_way: deque[tuple[Any, Tensor, list[Tensor]]] = deque()
        for bucket in _buckets([tensor for tensor in tensors if not is_sharded(tensor)]):
            # A large one is its own bucket and is not copied.
            alone = len(bucket) == 1 and bucket[0].is_contiguous()
            flat = bucket[0] if alone else torch.cat([tensor.flatten() for tensor in bucket])
            group = self.group if flat.device.type == self.device else self._hosts
            under_way.append((dist.all_reduce(flat, group=group, async_op=True), flat, bucket))
            if len(under_way) == 2:
                _finish(*under_way.popleft())
        while under_way:
            _finish(*under_way.popleft())

    def any(self, flag: bool) -> bool:
        return bool(self._extreme(int(flag), dist.ReduceOp.MAX))

    def least(self, number: int) -> int:
        return self._extreme(number, dist.ReduceOp.MIN)

    def _extreme(self, number: int, operation: dist.ReduceOp.RedOpType) -> int:
        value = torch.tensor(number)
        dist.all_reduce(value, op=operation, group=self._hosts)
        return int(value)

    def gather(self, text: str) -> list[str]:
        texts: list[Any] = [""] * self.world
        dist.all_gather_object(texts, text, group=self._hosts)
        return texts

    def told(self, text: str) -> str:
        texts: list[Any] = [text]
        dist.broadcast_object_list(texts, src=0, group=self._hosts)
        return str(texts[0])

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        if self.rank:
            self.meet()
        yield
        if not self.rank:
            self.meet()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.lockstep:
            return {} if self.rank else dict(tensors)
        return whole(tensors, keep=self.rank == 0)

    def may_speak(self) -> bool:
        """Whether this is the first process that asks: of an error that ends all, one is to speak."""
        try:
            return bool(self._store.add("linnet/spoke", 1) == 1)
        except RuntimeError:
            return True  # The process that had the store has gone.


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, together at most BUCKET_BYTES, or one alone."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or kind != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _finish(work: Any, flat: Tensor, bucket: list[Tensor]) -> None:
    work.wait()
    if flat is not bucket[0]:
        parts = torch.split(flat, [tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [p.view_as(t) for p, t in zip(parts, bucket, strict=True)])


@contextlib.contextmanager
def join() -> Iterator[Ranks]:
    """The ranks of this training; one alone where torchrun has not started this process.

    An error or a signal ends all ranks. Only the first to meet it raises it; the others leave with a SystemExit of the
    same code, so that the user reads one message and not one of each process.

    Raises:
        UsageError: there are more processes than cards.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield ALONE
        return
    device = _take_card()
    store, rank, world = next(rendezvous("env://", timeout=JOINING))
    ranks = Several(store, rank=rank, world=world, device=device)
    try:
        yield ranks
    except BaseException as error:
        speaks = ranks.may_speak()
        if isinstance(error, Stopped | DivergedError):  # On all ranks; the first may still be writing.
            with contextlib.suppress(RuntimeError, Stopped):
                ranks.meet()
        if not speaks:
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        if not _is_lost(error):
            raise
        raise LinnetError(
            "Another process of this training has ended, so all do; what is saved is whole: the same command goes on."
        ) from error
    dist.destroy_process_group()


def _take_card() -> str:
    """The kind of device; of several cards this process takes its own."""
    if not torch.cuda.is_available():
        return "cpu"
    card, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if card >= cards:
        raise UsageError(
            f"torchrun starts more processes than this machine has cards; set --nproc-per-node {cards}."
        )
    torch.cuda.set_device(card)
    return "cuda"


def _is_lost(error: BaseException) -> bool:
    """Whether this is how another process's end looks from here."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
    )
