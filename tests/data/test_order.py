"""The computed order: a permutation for every size, and a well-shuffled one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data.order import keyed_hash, permute


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_each_place_comes_once(size: int, key: int) -> None:
    order = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(order), np.arange(size))


def test_a_place_does_not_depend_on_the_others_asked_for() -> None:
    whole = permute(np.arange(1000), 1000, 7)
    assert [int(permute(np.array([i]), 1000, 7)[0]) for i in range(0, 1000, 37)] == whole[::37].tolist()


def test_a_trillion_places_need_no_memory() -> None:
    size = 10**12
    places = permute(np.array([0, 1, size - 1]), size, 3)
    assert len(set(places.tolist())) == 3
    assert ((places >= 0) & (places < size)).all()


@pytest.mark.parametrize("size", [5, 16, 100, 4096])
def test_places_are_spread_evenly_over_keys(size: int) -> None:
    """The mean place of each index over 500 keys lies within 5 standard errors of the middle."""
    means = np.mean([permute(np.arange(size), size, key) for key in range(500)], axis=0)
    error = np.sqrt((size**2 - 1) / 12 / 500)
    assert np.abs(means - (size - 1) / 2).max() < 5 * error


def test_neighbours_are_torn_apart() -> None:
    order = permute(np.arange(10_000), 10_000, 1)
    assert abs(float(np.corrcoef(order[:-1], order[1:])[0, 1])) < 0.05
    assert np.count_nonzero(np.abs(np.diff(order)) == 1) < 20


def test_hashes_are_the_same_on_every_machine() -> None:
    assert keyed_hash("order", 1337, 0) == 10398654168536247899
