"""A shuffled order that is computed, not stored: which row comes at place i of epoch e.

What   `permute(indices, size, key)`: a permutation of range(size), for any of its places at once.
Why    A list of a billion shuffled rows would need 8 GB and a saved generator; this needs a seed, is O(1) for each
       place, and so resuming needs one integer and every rank sees the same order.
How    A Feistel network over the next power of four, walked until the result is below `size` (cycle walking;
       Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

ROUNDS = 6


def keyed_hash(*parts: int | str) -> int:
    """A 64-bit number that looks random and is the same on every machine.

    >>> keyed_hash("order", 1, 0) == keyed_hash("order", 1, 0)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permute(indices: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """The places [N] of a permutation of range(size) that `key` chooses; each index is in range(size)."""
    half = max(1, (size - 1).bit_length() + 1 >> 1)  # bits of each half: the domain is 4**half >= size
    keys = [np.uint64(keyed_hash("round", key, number)) for number in range(ROUNDS)]
    walking = _feistel(indices.astype(np.uint64), half, keys)
    while (outside := walking >= size).any():
        walking[outside] = _feistel(walking[outside], half, keys)
    return walking.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014); products wrap around at 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
