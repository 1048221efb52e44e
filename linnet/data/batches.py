"""`batch(step)`: arithmetic from a token store to the tensors of one optimizer step.

What   `Batches` for training, `validation_batches` for evaluation, `Batch` for what they give.
Why    A batch is a pure function of (store, seed, step, rank, world): resuming needs one integer, is O(1), and the
       order of examples is the same for any number of ranks.
How    PAIR SPACE: an example of n ids has n - 1 pairs (input, target). Row formats take whole packed rows (packing.py).
       `text` takes `block_size` consecutive pairs of all documents laid in a ring; each epoch starts the ring at
       another place, so that its cuts fall elsewhere. B rows in the step, T = block_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from linnet.data.order import keyed_hash, permute
from linnet.data.packing import pack
from linnet.data.store import Store
from linnet.errors import LinnetError, UsageError

Ints = npt.NDArray[np.int64]
__all__ = ["Batch", "Batches", "Store", "pack", "share_of", "validation_batches"]


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Attributes:
        ids, targets: [B, T] int64; target t follows input t in the text. Padding is 0 in both.
        learn: [B, T] bool; False for what is only read, and for padding.
        positions: [B, T] int64; they start again at 0 with each example.
        lengths: for each row the lengths of the examples in it; what is missing to T is padding.
        weight: learned tokens of the whole step, over all ranks.
        tokens: real tokens (no padding) of the whole step, over all ranks.
    """

    ids: Tensor
    targets: Tensor
    learn: Tensor
    positions: Tensor
    lengths: list[list[int]]
    weight: float
    tokens: int

    def rows(self, start: int, stop: int) -> Batch:
        """A micro-batch: rows `start` to `stop`; `weight` and `tokens` stay those of the step."""
        parts = {name: getattr(self, name)[start:stop] for name in ("ids", "targets", "learn", "positions")}
        return replace(self, **parts, lengths=self.lengths[start:stop])

    def segments(self) -> list[list[int]] | None:
        """`lengths`; None where every row is one example from its start, with or without padding behind."""
        return None if all(len(row) <= 1 for row in self.lengths) else self.lengths

    def learned(self) -> Tensor | None:
        """[N] int64 on the device of `ids`: places of the learned targets in the flattened rows; None where all are."""
        if bool(self.learn.all()):
            return None
        places = self.learn.flatten().nonzero().squeeze(1)
        return _pinned(places, self.ids.device).to(self.ids.device, non_blocking=True)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device, but for `learn`: asking a card what is learned would wait for it."""
        names = ("ids", "targets", "positions") if self.segments() else ("ids", "targets")
        parts = {name: getattr(self, name) for name in names}
        target = torch.device(device)
        moved: dict[str, Any] = {
            name: _pinned(tensor, target).to(target, non_blocking=True) for name, tensor in parts.items()
        }
        return replace(self, **moved)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies to a card that do not wait for what it does must start in pinned memory."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


class Ahead:
    """`batches(step)`, with the batch of the next step made in a thread while this one is computed.

    Making 16 rows of 256 takes 0.7 ms of one core; a card that computes such a step in 5 ms would wait for it.
    """

    def __init__(self, batches: Callable[[int], Batch]) -> None:
        self._batches = batches
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of a step, which may be any."""
        ready = self._next
        batch = ready[1].result() if ready is not None and ready[0] == step else self._batches(step)
        self._next = step + 1, self._thread.submit(self._batches, step + 1)
        return batch

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Places:
    """Where the pairs of some rows are in the store.

    Attributes:
        token: [B, T] index of the input token, -1 for padding.
        first: [B, T] True where an example (or a window of one) begins in the row.
        learn: [B, T] False where the pair is only read.
    """

    token: Ints
    first: npt.NDArray[np.bool_]
    learn: npt.NDArray[np.bool_]


class Batches:
    """The training batches of one rank: `batches(step)` for step 0, 1, 2, ...

    Attributes:
        rows_per_epoch: rows that an epoch has; one shorter than a batch goes on in the next epoch.
    """

    def __init__(
        self,
        store: Store,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ) -> None:
        """`batch_size` rows of `block_size` pairs in a step, over all `world` ranks; this one is `rank`.

        Raises:
            UsageError: batch_size is not divisible by world.
            LinnetError: the text is shorter than one block.
        """
        if batch_size % world:
            raise UsageError(
                f"train.batch_size={batch_size} is not divisible by the {world} devices; "
                f"set train.batch_size={-(-batch_size // world) * world}."
            )
        self.store = store
        self.batch_size, self.block_size = batch_size, block_size
        self.seed, self.rank, self.world, self.shuffle = seed, rank, world, shuffle
        self._source: _TextRows | _PackedRows = _rows_of(store, block_size)
        self.rows_per_epoch: int = self._source.rows_per_epoch
        if self.rows_per_epoch == 0:
            longest = self._source.pairs
            raise LinnetError(
                f"The training text has {len(store.tokens):,} tokens, too few for one block of "
                f"train.block_size={block_size}; set train.block_size={max(longest, 1)} or less, or give more text."
            )

    def __call__(self, step: int) -> Batch:
        """The batch of optimizer step `step` (from 0), this rank's rows of it. Pure, and O(1) in `step`."""
        places = self._source.places(*self._rows_of_step(step))
        share = self.batch_size // self.world
        return _batch(self.store, places, own=slice(self.rank * share, (self.rank + 1) * share))

    def name_rows(self, step: int, rows: list[int]) -> str:
        """What is in these rows of this rank's batch: the source rows' ids, as `linnet inspect` prints them.

        Of continuous text, the documents' numbers in the order of the source, from 1. Empty for no rows.
        """
        if not rows:
            return ""
        numbers, offsets = self._rows_of_step(step)
        own = np.asarray(rows) + self.rank * (self.batch_size // self.world)
        places = self._source.places(numbers[own], offsets[own])
        starts = np.unique(places.token[places.first])
        examples = np.unique(np.searchsorted(self.store.examples, starts, side="right") - 1)
        if self.store.format == "text":
            return "documents " + _some([f"{example + 1}" for example in examples])
        sources = self.store.source_rows()
        found = np.unique(np.searchsorted(sources["first"], examples, side="right") - 1)
        return "rows with the ids " + _some([f"{number:016x}" for number in sources["id"][found].tolist()])

    def _rows_of_step(self, step: int) -> tuple[Ints, Ints]:
        """(row, offset) [B]: which rows the step has, and where in the ring their epoch begins."""
        sample = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs, rows = np.divmod(sample, self.rows_per_epoch)
        offsets = np.zeros_like(rows)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            if self.shuffle:
                rows[here] = permute(rows[here], self.rows_per_epoch, keyed_hash("order", self.seed, epoch))
                offsets[here] = keyed_hash("offset", self.seed, epoch) % self._source.pairs
        return rows, offsets


def _some(names: list[str], most: int = 8) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _rows_of(store: Store, block_size: int) -> _TextRows | _PackedRows:
    return _TextRows(store, block_size) if store.format == "text" else _PackedRows(store, block_size)


class _TextRows:
    """Continuous text: row r of an epoch is pairs [offset + r T, offset + (r + 1) T) of the ring."""

    def __init__(self, store: Store, block_size: int) -> None:
        examples = np.asarray(store.examples)
        # Example i begins at pair starts[i] - i, since each example before it has one pair less than tokens.
        self._pair_starts = examples[:-1] - np.arange(len(examples) - 1)
        self.pairs = store.pairs
        self.total_pairs = self.pairs
        self.block_size = block_size
        self.rows_per_epoch = self.pairs // block_size
        self.rows = -(-self.pairs // block_size)  # with a short last one

    def places(self, rows: Ints, offsets: Ints) -> _Places:
        pair = (offsets + rows * self.block_size)[:, None] + np.arange(self.block_size)
        return self._at(pair % self.pairs)

    def in_order(self, rows: Ints) -> _Places:
        """Rows of the text from its beginning to its end, without the ring."""
        pair = (rows * self.block_size)[:, None] + np.arange(self.block_size)
        return self._at(np.where(pair < self.pairs, pair, -1))

    def _at(self, pair: Ints) -> _Places:
        example = np.searchsorted(self._pair_starts, pair, side="right") - 1
        token = np.where(pair < 0, -1, pair + example)
        first = np.ones(token.shape, bool)
        # Between two examples (and where the ring closes) one token is no input, so the index jumps.
        first[:, 1:] = token[:, 1:] != token[:, :-1] + 1
        return _Places(token, first & (token >= 0), token >= 0)


class _PackedRows:
    """Row formats: rows of whole examples and windows, as `pack` laid them."""

    def __init__(self, store: Store, block_size: int) -> None:
        packed = pack(store, block_size)
        self.windows = packed[:, 1:]
        self.rows = self.rows_per_epoch = int(packed[-1, 0]) + 1 if len(packed) else 0
        self.total_pairs = int(self.windows[:, 1].sum())
        self.ends = np.searchsorted(packed[:, 0], np.arange(self.rows_per_epoch), side="right")
        self.pairs = 1  # no ring, no offset
        self.block_size = block_size

    def places(self, rows: Ints, offsets: Ints) -> _Places:
        """`offsets` belong to the ring of `text`."""
        return self.in_order(rows)

    def in_order(self, rows: Ints) -> _Places:
        shape = (len(rows), self.block_size)
        token = np.full(shape, -1, np.int64)
        first, learn = np.zeros(shape, bool), np.zeros(shape, bool)
        for line, row in enumerate(rows.tolist()):
            begin = int(self.ends[row - 1]) if row else 0
            at = 0
            for start, pairs, read in self.windows[begin : self.ends[row]].tolist():
                token[line, at : at + pairs] = np.arange(start, start + pairs)
                first[line, at] = True
                learn[line, at + read : at + pairs] = True
                at += pairs
        return _Places(token, first, learn)


def _batch(store: Store, places: _Places, *, own: slice) -> Batch:
    """Read the rows `own` of `places` from the store; weight and tokens count all of them."""
    real = places.token >= 0
    learn = places.learn & (store.learn[places.token + 1] == 1)  # padding looks up token 0 and is not learned
    weight, tokens = float(learn.sum()), int(real.sum())
    token, first, real = places.token[own], places.first[own], real[own]
    column = np.arange(token.shape[1])
    begins = np.maximum.accumulate(np.where(first, column, 0), axis=1)
    lengths = []
    for row_first, row_real in zip(first, real, strict=True):
        edges = [*np.flatnonzero(row_first).tolist(), int(row_real.sum())]
        lengths.append([stop - start for start, stop in pairwise(edges)])
    return Batch(
        ids=torch.from_numpy(np.where(real, store.tokens[token], 0).astype(np.int64)),
        targets=torch.from_numpy(np.where(real, store.tokens[token + 1], 0).astype(np.int64)),
        learn=torch.from_numpy(learn[own]),
        positions=torch.from_numpy(column - begins),
        lengths=lengths,
        weight=weight,
        tokens=tokens,
    )


def validation_batches(store: Store, *, block_size: int, batch_size: int, max_tokens: int) -> Iterator[Batch]:
    """Batches that go through `store` (a `Store.validation`) once, in order, with at most `max_tokens` real tokens.

    `text` gives windows that do not overlap and cover every pair, the last one short. Where that is more than
    `max_tokens`, rows are taken at even distances, so that each source has its part.
    """
    source = _rows_of(store, block_size)
    rows = _evenly(source.rows, source.total_pairs, block_size=block_size, max_tokens=max_tokens)
    for start in range(0, len(rows), batch_size):
        places = source.in_order(rows[start : start + batch_size])
        if max_tokens < block_size:
            places.token[:, max_tokens:] = -1
        yield _batch(store, places, own=slice(None))


def share_of(batches: Iterable[Batch], *, rank: int, world: int) -> Iterator[Batch]:
    """Every `world`-th of the batches, from the `rank`-th on.

    All ranks get equally many: where the last round has too few, the rest gets its last one with nothing to learn.
    """
    together: list[Batch] = []
    for batch in batches:
        together.append(batch)
        if len(together) == world:
            yield together[rank]
            together.clear()
    if rank < len(together):
        yield together[rank]
    elif together:
        yield replace(together[-1], learn=torch.zeros_like(together[-1].learn))


def _evenly(rows: int, pairs: int, *, block_size: int, max_tokens: int) -> Ints:
    """All of range(rows) if their `pairs` are few enough, else full rows at even distances."""
    if pairs <= max_tokens:
        return np.arange(rows)
    count = max(1, max_tokens // block_size)
    return np.arange(count) * rows // count
