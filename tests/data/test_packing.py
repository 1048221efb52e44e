"""Packing: every target learned exactly once, no row too long, hardly any padding."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data.packing import best_fit, pack, windows
from linnet.data.store import Store
from linnet.errors import DiskError
from tests.data.stores import lines_store

LENGTHS = st.lists(st.integers(2, 90), min_size=1, max_size=60)  # ids of an example; 2 is an empty one


def starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, block_size=st.integers(1, 40))
def test_each_target_is_learned_exactly_once(lengths: list[int], block_size: int) -> None:
    examples = starts(lengths)
    rows = best_fit(windows(examples, block_size), block_size)
    learned = np.zeros(examples[-1], int)
    for _, start, pairs, read in rows.tolist():
        assert 0 <= read < pairs <= block_size
        assert np.searchsorted(examples, start, side="right") == np.searchsorted(
            examples, start + pairs, side="right"
        )
        learned[start + 1 + read : start + 1 + pairs] += 1
    expected = np.ones(examples[-1], int)
    expected[examples[:-1]] = 0  # the first token of an example has nothing before it
    assert np.array_equal(learned, expected)
    fill = np.bincount(rows[:, 0], rows[:, 2])
    assert fill.max() <= block_size
    assert fill.min() > 0
    assert np.array_equal(np.unique(rows[:, 0]), np.arange(len(fill)))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, block_size=st.integers(8, 40))
def test_further_windows_repeat_a_quarter_block(lengths: list[int], block_size: int) -> None:
    made = windows(starts(lengths), block_size)
    for (start, pairs, _), (following, _, read) in zip(made.tolist(), made.tolist()[1:], strict=False):
        assert read in (0, block_size // 4)
        if read:
            assert following + read == start + pairs


def plain_best_fit(lengths: list[int], block_size: int) -> int:
    """Rows that best-fit decreasing needs, one window at a time."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in room if space >= length]
        if fitting:
            room.remove(min(fitting))
            room.append(min(fitting) - length)
        else:
            room.append(block_size - length)
    return len(room)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80), block_size=st.integers(50, 64))
def test_packing_by_lengths_needs_the_rows_of_plain_best_fit(lengths: list[int], block_size: int) -> None:
    made = np.array([[0, length, 0] for length in lengths])
    assert best_fit(made, block_size)[-1, 0] + 1 == plain_best_fit(lengths, block_size)


def test_a_million_windows_are_packed_in_seconds_and_tightly() -> None:
    lengths = np.random.default_rng(1).lognormal(4.8, 0.5, 300_000).astype(np.int64).clip(1, 512)
    made = np.stack([np.arange(len(lengths)), lengths, np.zeros_like(lengths)], axis=1)
    rows = best_fit(made, 512)
    assert lengths.sum() / ((rows[-1, 0] + 1) * 512) > 0.99


def test_the_packing_is_kept_and_a_wrong_one_is_made_again(tmp_path: Path) -> None:
    store = lines_store(tmp_path, [f"line number {i} " * (i % 7 + 1) for i in range(100)])
    path = store.folder / "rows-32.npy"
    rows = pack(store, 32)
    assert np.array_equal(np.load(path), rows)
    before = path.stat().st_mtime_ns
    assert np.array_equal(pack(store, 32), rows)
    assert path.stat().st_mtime_ns == before
    good = path.read_bytes()
    for damage in (good[:-8], good[:200] + bytes([good[200] ^ 1]) + good[201:], b"", b"\x80\x04."):
        path.write_bytes(damage)
        assert np.array_equal(pack(store, 32), rows)
        assert path.read_bytes() == good
    Store.open(store.folder)  # the packing beside it does not disturb the manifest


def test_a_full_disk_does_not_stop_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = lines_store(tmp_path, ["a line", "and one more"])

    def full(*_: object) -> str:
        raise DiskError("full")

    monkeypatch.setattr("linnet.files.write_file", full)
    assert len(pack(store, 32)) == 2
    assert not (store.folder / "rows-32.npy").exists()
