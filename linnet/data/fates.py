"""What becomes of each row: trained on, held out, or left out and why.

Why    It depends on all rows: which are held out, which are copies. All else of preparing is done row by row.
How    A row is held out by its hash, so that adding rows moves none. Of a row, some 20 bytes are held in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from linnet.data.duplicates import Sketches, near_duplicates

if TYPE_CHECKING:
    from linnet.config import FiltersConfig

ROWS_COMPARED = 1 << 17  # training rows that are compared with the held-out ones at once: 17 MB of sketches

# Why a row is left out, where no filter says so.
HELD_OUT, NEAR_HELD_OUT = "equal to a held-out row", "nearly equal to a held-out row"
EXACT, NEAR, LISTED = "exact_duplicates", "near_duplicates", "listed in data.drop"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fates:
    """What becomes of each row, over all parts.

    Attributes:
        held_out, left_out: [R].
        why: rule -> [R] True where it is what leaves the row out.
    """

    held_out: Mask
    left_out: Mask
    why: Mapping[str, Mask]


def decide(
    ids: npt.NDArray[np.uint64],
    *,
    own_held_out: Mask,
    share: float,
    max_rows: int | None,
    sketches: Sequence[Sketches],
    filters: FiltersConfig,
    drop: npt.NDArray[np.uint64],
    keep: npt.NDArray[np.uint64],
) -> Fates:
    """Held out, or left out, or trained on.

    Args:
        ids: [R], see `linnet.data.map.row_id`.
        own_held_out: [R] True where the row is of a source that is held out whole.
        share: of the rows, that is held out by hash.
        max_rows: of each side; rows beyond are left out without a word.
        sketches: of each part [rows of the part, K], see `linnet.data.duplicates`; empty where none were made.
        drop, keep: ids that people listed.
    """
    by_hash = ids < np.uint64(int(share * 2**64)) if share else np.zeros(len(ids), bool)
    held_out = own_held_out | by_hash
    why: dict[str, Mask] = {}
    left_out = np.zeros(len(ids), bool)
    if max_rows:
        for side in (own_held_out, ~own_held_out):
            left_out |= side & (np.cumsum(side) > max_rows)

    def leave_out(rule: str, mask: Mask) -> None:
        new = mask & ~left_out
        if new.any():
            why[rule] = new
            left_out[:] |= new

    kept = np.isin(ids, keep)
    leave_out(LISTED, np.isin(ids, drop))
    if own_held_out.any():
        leave_out(HELD_OUT, ~own_held_out & np.isin(ids, ids[own_held_out]))
    if filters.exact_duplicates:
        leave_out(EXACT, _copies(ids, held_out) & ~kept)
    if sketches:
        leave_out(NEAR_HELD_OUT, _near_held_out(sketches, held_out, among=~left_out))
        if near := filters.near_duplicates:
            leave_out(NEAR, _near(np.concatenate(sketches), near, held_out, among=~left_out) & ~kept)
    return Fates(held_out & ~left_out, left_out, why)


def _near_held_out(sketches: Sequence[Sketches], held_out: Mask, *, among: Mask) -> Mask:
    """[R] True for training rows, of some, that are near a held-out one.

    Training rows are compared part by part: their sketches, 128 bytes each, would fill the memory.
    """
    edges = [0, *np.cumsum([len(part) for part in sketches]).tolist()]
    kept_out = np.concatenate(
        [part[(held_out & among)[a:b]] for part, (a, b) in zip(sketches, pairwise(edges), strict=True)]
    )
    result = np.zeros(len(among), bool)
    waiting: list[Sketches] = []
    begin = 0
    for part, end in zip(sketches, edges[1:], strict=True):
        waiting.append(part)
        # As many rows as are held out at least, so that going through these each time costs no more than the rest.
        if end - begin >= max(ROWS_COMPARED, len(kept_out)) or end == edges[-1]:
            training = (among & ~held_out)[begin:end]
            both = np.concatenate([kept_out, np.concatenate(waiting)[training]])
            sides = np.arange(len(both)) < len(kept_out)
            result[begin + np.flatnonzero(training)] = near_duplicates(both, threshold=0.0, held_out=sides)[
                len(kept_out) :
            ]
            waiting, begin = [], end
    return result


def _near(sketches: Sketches, threshold: float, held_out: Mask, *, among: Mask) -> Mask:
    """[R] True for near duplicates among some rows: of two copies one must stay."""
    result = np.zeros(len(among), bool)
    if among.any():
        result[among] = near_duplicates(sketches[among], threshold=threshold, held_out=held_out[among])
    return result


def _copies(ids: npt.NDArray[np.uint64], held_out: Mask) -> Mask:
    """[R] True where the same row came before on the same side."""
    keys = np.stack([ids, held_out.astype(np.uint64)], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    copies = np.ones(len(ids), bool)
    copies[first] = False
    return copies
