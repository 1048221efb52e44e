"""Batches: the same order for any number of ranks, each pair once an epoch, nothing leaks between examples."""

import random
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data.batches import Batch, Batches, validation_batches
from linnet.data.store import Store
from linnet.errors import LinnetError, UsageError
from tests.data.stores import lines_store, text_store

TEXTS = ["The linnet sings in the hedge. " * 9, "It learns its song by listening!\n" * 7, "Short.", "abc"]
LINES = [f"{'word ' * (i * i % 23)}number {i}" for i in range(70)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return text_store(tmp_path_factory.mktemp("text"), *TEXTS)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return lines_store(tmp_path_factory.mktemp("lines"), LINES)


def rows(batch: Batch) -> list[tuple[list[int], list[int], list[bool], list[int]]]:
    return list(
        zip(
            batch.ids.tolist(),
            batch.targets.tolist(),
            batch.learn.tolist(),
            batch.positions.tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("form", ["text", "lines"])
def test_r7_the_order_is_the_same_for_any_ranks_and_any_resume_point(
    form: str, request: pytest.FixtureRequest
) -> None:
    store: Store = request.getfixturevalue(form)
    settings_ = {"block_size": 32, "batch_size": 4, "seed": 3}
    alone = Batches(store, **settings_)
    steps = 3 * alone.rows_per_epoch // 4 + 2  # three epochs and the wrap into the fourth
    expected = [rows(alone(step)) for step in range(steps)]
    weights = [(alone(step).weight, alone(step).tokens) for step in range(steps)]
    generator = random.Random(1)
    for world in (1, 2, 4):
        for _ in range(100):
            resumed = [Batches(store, **settings_, rank=rank, world=world) for rank in range(world)]
            step = generator.randrange(steps)
            parts = [ranks(step) for ranks in resumed]
            assert [row for part in parts for row in rows(part)] == expected[step]
            assert all((part.weight, part.tokens) == weights[step] for part in parts)


@pytest.mark.parametrize("form", ["text", "lines"])
def test_an_epoch_has_each_pair_at_most_once_and_epochs_differ(
    form: str, request: pytest.FixtureRequest
) -> None:
    store: Store = request.getfixturevalue(form)
    batches = Batches(store, block_size=32, batch_size=1, seed=5)
    epochs = []
    for epoch in range(3):
        first = epoch * batches.rows_per_epoch
        found = [
            batches._source.places(*batches._rows_of_step(first + i)) for i in range(batches.rows_per_epoch)
        ]
        learned = Counter(token for places in found for token in places.token[places.learn].tolist())
        assert max(learned.values()) == 1
        assert len(learned) == (store.pairs if form == "lines" else store.pairs // 32 * 32)
        epochs.append([places.token.tolist() for places in found])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    cuts = [{row[0][0] % 32 for row in epoch} for epoch in epochs]
    assert form == "lines" or len({frozenset(cut) for cut in cuts}) == 3
    in_order = Batches(store, block_size=32, batch_size=1, seed=5, shuffle=False)
    assert in_order(0).ids.tolist() == in_order(batches.rows_per_epoch).ids.tolist()
    assert Batches(store, block_size=32, batch_size=1, seed=6)(0).ids.tolist() != batches(0).ids.tolist()


def check(store: Store, batch: Batch) -> None:
    """What holds for every batch: pairs follow the text, positions and segments follow the examples."""
    size = batch.ids.shape[1]
    examples = np.asarray(store.examples)
    texts = {tuple(store.tokens[a:b].tolist()) for a, b in pairwise(examples)}
    assert batch.ids.dtype == batch.targets.dtype == batch.positions.dtype == torch.int64
    assert batch.learn.dtype == torch.bool
    for number, lengths in enumerate(batch.lengths):
        ids, targets = batch.ids[number].tolist(), batch.targets[number].tolist()
        used, at = sum(lengths), 0
        assert 0 < used <= size
        for length in lengths:
            piece = (*ids[at : at + length], targets[at + length - 1])
            assert ids[at + 1 : at + length] == targets[at : at + length - 1]
            assert any(contains(whole, piece) for whole in texts)  # inside one example: nothing leaks
            assert batch.positions[number, at : at + length].tolist() == list(range(length))
            at += length
        assert not batch.learn[number, used:].any()
        assert batch.ids[number, used:].tolist() == [0] * (size - used)
        assert int(batch.positions[number].max()) < size
        assert batch.segments() is batch.lengths or len(lengths) == 1


def contains(whole: tuple[int, ...], piece: tuple[int, ...]) -> bool:
    last = len(whole) - len(piece)
    return any(whole[i : i + len(piece)] == piece for i in range(last + 1))


@pytest.mark.parametrize("form", ["text", "lines"])
@pytest.mark.parametrize("block_size", [8, 32, 128])
def test_examples_do_not_leak_into_each_other(
    form: str, block_size: int, request: pytest.FixtureRequest
) -> None:
    store: Store = request.getfixturevalue(form)
    batches = Batches(store, block_size=block_size, batch_size=3, seed=1)
    for step in range(batches.rows_per_epoch // 3 + 2):
        batch = batches(step)
        check(store, batch)
        assert batch.weight == float(batch.learn.sum())
        assert batch.tokens == sum(map(sum, batch.lengths))


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text("ab ", min_size=1, max_size=30), min_size=1, max_size=6),
    block_size=st.integers(1, 12),
    batch_size=st.integers(1, 5),
)
def test_any_texts_in_any_blocks(texts: list[str], block_size: int, batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = text_store(Path(folder), *texts)
        if store.pairs < block_size:
            with pytest.raises(LinnetError, match=f"train.block_size={store.pairs}"):
                Batches(store, block_size=block_size, batch_size=batch_size, seed=0)
            return
        batches = Batches(store, block_size=block_size, batch_size=batch_size, seed=0)
        for step in range(4):
            check(store, batches(step))


@settings(max_examples=25, deadline=None)
@given(
    lines=st.lists(st.text("ab ", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=12),
    block_size=st.integers(1, 12),
)
def test_any_lines_are_learned_once_an_epoch(lines: list[str], block_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = lines_store(Path(folder), lines)
        batches = Batches(store, block_size=block_size, batch_size=1, seed=0)
        epoch = [batches(step) for step in range(batches.rows_per_epoch)]
        assert sum(batch.weight for batch in epoch) == store.manifest["counts"]["learned_tokens"]
        learned = Counter(t for batch in epoch for t in batch.targets[batch.learn].tolist())
        first = set(np.asarray(store.examples)[:-1].tolist())
        assert learned == Counter(t for i, t in enumerate(store.tokens.tolist()) if i not in first)


def test_an_epoch_shorter_than_a_batch_goes_on_in_the_next(tmp_path: Path) -> None:
    store = lines_store(tmp_path, ["one", "two", "three"])
    batches = Batches(store, block_size=6, batch_size=7, seed=0)
    assert batches.rows_per_epoch == 3
    counts = Counter(tuple(row) for step in range(3) for row in batches(step).ids.tolist())
    assert sorted(counts.values()) == [7, 7, 7]


def test_micro_batches_are_the_rows_of_the_batch(lines: Store) -> None:
    batch = Batches(lines, block_size=64, batch_size=6, seed=1)(0)
    parts = [batch.rows(0, 2), batch.rows(2, 6)]
    assert [row for part in parts for row in rows(part)] == rows(batch)
    assert [length for part in parts for length in part.lengths] == batch.lengths
    assert {(part.weight, part.tokens) for part in parts} == {(batch.weight, batch.tokens)}
    assert rows(batch.to("cpu")) == rows(batch)


def test_whole_windows_of_text_need_no_segments(tmp_path: Path) -> None:
    store = text_store(tmp_path, "a long document " * 50)
    batches = Batches(store, block_size=16, batch_size=4, seed=1)
    plain = sum(batches(step).segments() is None for step in range(10))
    assert plain >= 7  # all but the rows where the ring closes


def test_batch_size_must_fit_the_ranks(text: Store) -> None:
    with pytest.raises(UsageError, match=r"train.batch_size=6 .* set train.batch_size=8"):
        Batches(text, block_size=8, batch_size=6, seed=0, world=4)


def test_a_text_shorter_than_a_block_says_what_to_set(tmp_path: Path) -> None:
    store = text_store(tmp_path, "ten letter")
    with pytest.raises(
        LinnetError, match=r"12 tokens, .* train.block_size=64; set train.block_size=11 or less"
    ):
        Batches(store, block_size=64, batch_size=1, seed=0)


@pytest.mark.parametrize("block_size", range(1, 8))
@pytest.mark.parametrize("form", ["text", "lines"])
def test_the_shortest_blocks_train_on_each_pair(tmp_path: Path, form: str, block_size: int) -> None:
    """60 letters with everything "auto" end in blocks of a few tokens; a quarter block is then 0 or 1."""
    words = ["The linnet", "sings in the hedge,", "a", "and learns its song by listening."]
    store = text_store(tmp_path, " ".join(words)) if form == "text" else lines_store(tmp_path, words)
    learned_once = Counter(
        t
        for i, t in enumerate(store.tokens.tolist())
        if i not in set(np.asarray(store.examples)[:-1].tolist())
    )
    batches = Batches(store, block_size=block_size, batch_size=1, seed=1)
    assert batches.rows_per_epoch >= store.pairs // block_size > 0
    epoch = [batches(step) for step in range(batches.rows_per_epoch)]
    for batch in epoch:
        assert batch.ids.shape == (1, block_size)
        check(store, batch)
    learned = Counter(t for batch in epoch for t in batch.targets[batch.learn].tolist())
    missing = learned_once - learned
    assert not learned - learned_once
    assert missing.total() == (store.pairs % block_size if form == "text" else 0)
    found = list(validation_batches(store, block_size=block_size, batch_size=2, max_tokens=10**6))
    assert Counter(t for b in found for t in b.targets[b.learn].tolist()) == learned_once
    few = list(validation_batches(store, block_size=block_size, batch_size=2, max_tokens=3))
    assert 0 < sum(batch.tokens for batch in few) <= 3


def test_a_text_of_one_letter_has_a_batch(tmp_path: Path) -> None:
    store = text_store(tmp_path, "x")
    batch = Batches(store, block_size=1, batch_size=8, seed=1)(3)
    assert (batch.tokens, batch.weight) == (8, 8.0)


@pytest.mark.parametrize("form", ["text", "lines"])
@pytest.mark.parametrize("block_size", [7, 64])
def test_validation_covers_each_pair_once(form: str, block_size: int, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(form)
    found = list(validation_batches(store, block_size=block_size, batch_size=5, max_tokens=10**9))
    for batch in found:
        check(store, batch)
    assert sum(batch.weight for batch in found) == store.pairs == store.manifest["counts"]["learned_tokens"]
    targets = Counter(t for batch in found for t in batch.targets[batch.learn].tolist())
    first = set(np.asarray(store.examples)[:-1].tolist())
    assert targets == Counter(t for i, t in enumerate(store.tokens.tolist()) if i not in first)
    if form == "text":
        in_order = [t for batch in found for t in batch.targets[batch.learn].tolist()]
        assert in_order == [t for i, t in enumerate(store.tokens.tolist()) if i not in first]


@pytest.mark.parametrize("form", ["text", "lines"])
@pytest.mark.parametrize("max_tokens", [1, 5, 64, 100, 333])
def test_validation_keeps_to_its_most_tokens(
    form: str, max_tokens: int, request: pytest.FixtureRequest
) -> None:
    store: Store = request.getfixturevalue(form)

    def take() -> list[Batch]:
        return list(validation_batches(store, block_size=32, batch_size=3, max_tokens=max_tokens))

    found = take()
    assert 0 < sum(batch.tokens for batch in found) <= max_tokens
    assert sum(map(sum, (length for batch in found for length in batch.lengths))) <= max_tokens
    assert [rows(batch) for batch in found] == [rows(batch) for batch in take()]


def test_validation_of_many_documents_takes_of_each(tmp_path: Path) -> None:
    store = text_store(tmp_path, *(letter * 200 for letter in "abcdefgh"))
    found = list(validation_batches(store, block_size=20, batch_size=4, max_tokens=400))
    letters = store.tokenizer().decode([t for batch in found for t in batch.targets.flatten().tolist()])
    assert set(letters) == set("abcdefgh")
