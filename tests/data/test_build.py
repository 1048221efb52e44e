"""Building in parts: the same bytes for any number of workers, after any crash, on a full disk (D6)."""

import contextlib
import errno
import importlib.util
import json
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.config import DataConfig, TokenizerConfig
from linnet.data import inputs
from linnet.data.prepare import prepare
from linnet.data.store import Store
from linnet.errors import DiskError, LinnetError
from linnet.tokenizer import Tokenizer, train_bpe
from tests import faults
from tests.data.stores import lines_store, make_store

WORDS = [
    "the",
    "linnet",
    "sings",
    "of",
    "seven",
    "wild",
    "hedges",
    "and",
    "rain",
    "a",
    "small",
    "grey",
    "cat",
    "listens",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter([" ".join(WORDS) * 20]), vocab_size=300)


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SPAN", 2000)


def sentences(count: int, *, seed: int = 1) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(3, 15))) for _ in range(count)]


def write_rows(folder: Path, count: int = 300) -> Path:
    """Questions and answers in two files, some of them bad, some of them equal."""
    folder.mkdir(parents=True)
    rows = [json.dumps({"question": one, "answer": one.upper()}) for one in sentences(count)]
    rows[10:10] = ["{", '{"question": "no answer"}', "", rows[3]]
    (folder / "a.jsonl").write_text("\n".join(rows[: count // 2]) + "\n")
    (folder / "b.jsonl").write_text("\n".join(rows[count // 2 :]) + "\n")
    return folder


def build(folder: Path, tokenizer: Tokenizer, source: Path, **data: Any) -> Store:
    settings = {"format": "instruct", "validation": 0.2, "max_bad": 0.1, **data}
    config = DataConfig(source=str(source), **settings)
    return prepare(config, TokenizerConfig(), folder=folder / "store", tokenizer_from=tokenizer, size=65)


def content(store: Store) -> dict[str, bytes]:
    """All files but for the manifests, which hold times."""
    return {
        path.relative_to(store.folder).as_posix(): path.read_bytes()
        for path in sorted(store.folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_rows_are_counted_set_aside_and_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = build(tmp_path, tokenizer, write_rows(tmp_path / "data"))
    assert store.validation is not None
    counts, held_out = store.manifest["counts"], store.validation.manifest["counts"]
    assert counts["rows"] + held_out["rows"] == 301
    assert 30 < held_out["rows"] < 90
    assert store.manifest["quarantined"] == 2
    assert store.manifest["dropped"] == {"empty line": 1}
    bad = [json.loads(line) for line in (store.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(Path(entry["file"]).name, entry["line"]) for entry in bad] == [("a.jsonl", 11), ("a.jsonl", 12)]
    lines = (tmp_path / "data" / "a.jsonl").read_bytes().split(b"\n")
    assert [entry["byte"] for entry in bad] == [len(b"\n".join(lines[:n])) + 1 for n in (10, 11)]
    rows = np.load(store.folder / "rows.npy")
    assert rows["windows"].sum() == counts["examples"]
    assert len(set(rows["id"].tolist())) == len(rows) - 1  # one is there twice


@pytest.mark.usefixtures("small_spans")
@pytest.mark.parametrize("form", ["instruct", "lines", "text"])
def test_one_worker_or_three_one_span_or_many_give_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "data")
    if form != "instruct":
        for number, path in enumerate(sorted(source.iterdir())):
            path.unlink()
            text = "\r\n".join([*sentences(200, seed=number), "", "end"])
            path.with_suffix(".txt").write_bytes(text.encode())
    stores = [build(tmp_path / str(n), tokenizer, source, format=form, workers=n) for n in (1, 3)]
    monkeypatch.setattr(inputs, "SPAN", 1 << 20)
    stores.append(build(tmp_path / "whole", tokenizer, source, format=form, workers=1))
    for store in stores[1:]:
        assert content(store) == content(stores[0])
        assert store.fingerprint == stores[0].fingerprint
    assert not list(tmp_path.glob("*/.store.parts"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `cluster`)")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
@pytest.mark.usefixtures("small_spans")
def test_a_ray_cluster_of_two_workers_gives_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import ray

    source = write_rows(tmp_path / "data")
    here = build(tmp_path / "here", tokenizer, source)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        there = build(tmp_path / "there", tokenizer, source, engine="ray")
        with pytest.raises(LinnetError, match=r"more than data\.max_bad=0"):
            build(tmp_path / "bad", tokenizer, source, engine="ray", max_bad=0.0)
    finally:
        ray.shutdown()
    assert content(there) == content(here)


def disk_full_at(k: int) -> AbstractContextManager[None]:
    return faults.error_at(k, errno.ENOSPC)


def crash_everywhere(
    folder: Path, tokenizer: Tokenizer, *, points: Callable[[int], list[int]], fault: Callable[[int], Any]
) -> None:
    source = write_rows(folder / "data", 200)
    clean = content(build(folder / "clean", tokenizer, source))
    operations = faults.count(lambda: build(folder / "count", tokenizer, source))
    for k in points(operations):
        place = folder / str(k)
        with contextlib.suppress(DiskError), fault(k):
            build(place, tokenizer, source)
            pytest.fail("nothing happened")
        assert not (place / "store").exists() or content(Store.open(place / "store")) == clean
        assert content(build(place, tokenizer, source)) == clean
        assert {path.name for path in place.iterdir()} == {"store", ".store.lock"}


@pytest.mark.usefixtures("small_spans")
@pytest.mark.parametrize("fault", [faults.crash_at, disk_full_at], ids=["killed", "full disk"])
def test_killed_or_on_a_full_disk_the_next_time_gives_the_same(
    tmp_path: Path, tokenizer: Tokenizer, fault: Callable[[int], Any]
) -> None:
    """D6 with 10 points of each."""
    crash_everywhere(
        tmp_path, tokenizer, points=lambda n: [1 + k * (n - 1) // 9 for k in range(10)], fault=fault
    )


@pytest.mark.torture
@pytest.mark.usefixtures("small_spans")
@pytest.mark.parametrize("fault", [faults.crash_at, disk_full_at], ids=["killed", "full disk"])
def test_d6_killed_100_times(tmp_path: Path, tokenizer: Tokenizer, fault: Callable[[int], Any]) -> None:
    crash_everywhere(
        tmp_path, tokenizer, points=lambda n: sorted({1 + k * (n - 1) // 99 for k in range(100)}), fault=fault
    )


@pytest.mark.usefixtures("small_spans")
def test_parts_that_are_there_are_not_made_again(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from linnet.data import build as module

    source = write_rows(tmp_path / "data")
    made: list[str] = []
    map_job = module.map_job

    def counted(job: Any, plan: Any, folder: Path, **more: Any) -> dict[str, Any]:
        made.append(folder.name)
        return map_job(job, plan, folder, **more)

    monkeypatch.setattr(module, "map_job", counted)
    operations = faults.count(lambda: build(tmp_path / "count", tokenizer, source))
    parts = len(made)
    made.clear()
    with faults.crash_at(operations // 2):
        build(tmp_path, tokenizer, source)
    before = len(made)
    assert 1 < before < parts
    made.clear()
    build(tmp_path, tokenizer, source)
    assert len(made) <= parts - before + 1  # the one that was being made


def test_too_many_bad_rows_stop_it_with_a_summary(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_rows(tmp_path / "data")
    with pytest.raises(LinnetError) as caught:
        build(tmp_path, tokenizer, source, max_bad=0.005)
    message = str(caught.value)
    assert "2 of 303 rows cannot be used, more than data.max_bad=0.005" in message
    assert "the first is" in message
    assert f"{source / 'a.jsonl'}:11: byte" in message
    assert "data.max_bad=0.01 " in message
    assert not (tmp_path / "store").exists()


def test_lists_of_ids_overrule(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_rows(tmp_path / "data")
    store = build(tmp_path, tokenizer, source, validation=0.0)
    rows = np.load(store.folder / "rows.npy")
    ids, counts = np.unique(rows["id"], return_counts=True)
    single, double = ids[counts == 1][:3], ids[counts == 2]
    (tmp_path / "drop.txt").write_text("# these\n" + "\n".join(f"{i:016x} # why" for i in single.tolist()))
    (tmp_path / "keep.txt").write_text(f"{int(double[0]):016x}\n")
    filters = {"exact_duplicates": True}
    without = build(tmp_path, tokenizer, source, drop=str(tmp_path / "drop.txt"), filters=filters)
    left_out = [json.loads(line) for line in (without.folder / "dropped.jsonl").read_text().splitlines()]
    assert without.manifest["dropped"] == {
        "empty line": 1,
        "listed in data.drop": 3,
        "exact_duplicates": 1,
    }
    assert {int(entry["id"], 16) for entry in left_out} == {*single.tolist(), *double.tolist()}
    assert all(":" in entry["place"] and entry["text"].startswith("user:") for entry in left_out)
    kept = build(tmp_path, tokenizer, source, keep=str(tmp_path / "keep.txt"), filters=filters)
    assert kept.manifest["dropped"] == {"empty line": 1}
    (tmp_path / "drop.txt").write_text("first row\n")
    with pytest.raises(LinnetError, match=r"drop.txt:1: 'first row' is no row id"):
        build(tmp_path, tokenizer, source, drop=str(tmp_path / "drop.txt"))


def test_training_rows_nearly_equal_to_held_out_rows_are_dropped(tmp_path: Path) -> None:
    rows = sentences(60)
    long = [f"{one} {two} {three}" for one, two, three in zip(rows, rows[1:], rows[2:], strict=False)]
    (tmp_path / "test.txt").write_text("\n".join(long[:10]))
    near = [row.replace("linnet", "Linnet", 1) + "!" for row in long[:10]]
    store = lines_store(tmp_path / "a", [*long[20:], *near], validation=str(tmp_path / "test.txt"))
    assert store.manifest["dropped"] == {"nearly equal to a held-out row": 10}
    assert any("nearly equal" in note for note in store.notes)


def test_max_rows_reads_the_first_rows_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_rows(tmp_path / "data")
    store = build(tmp_path, tokenizer, source, max_rows=40, validation=0.0)
    whole = build(tmp_path / "whole", tokenizer, source, validation=0.0)
    assert store.manifest["counts"]["rows"] == 40
    length = len(store.tokens)
    assert np.array_equal(store.tokens, whole.tokens[:length])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_document_is_prepared_like_its_content(
    tmp_path: Path, tokenizer: Tokenizer, suffix: str
) -> None:
    import gzip

    import zstandard

    text = "\n".join(sentences(3000)).encode()
    (tmp_path / "plain.txt").write_bytes(text)
    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    (tmp_path / f"packed.txt{suffix}").write_bytes(pack(text))
    stores = []
    for name in ("plain.txt", f"packed.txt{suffix}"):
        config = DataConfig(source=str(tmp_path / name), format="text", validation=0.1)
        stores.append(
            prepare(config, TokenizerConfig(), folder=tmp_path / f"{name}-store", tokenizer_from=tokenizer)
        )
    assert content(stores[0]) == content(stores[1])


def test_text_from_rows_is_a_document_each(tmp_path: Path) -> None:
    rows = sentences(50)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f" {row}\n"}) for row in rows))
    store = make_store(tmp_path, source=str(tmp_path / "a.jsonl"), format="text", validation=0.2)
    assert store.validation is not None
    tokenizer = store.tokenizer()
    starts = store.examples.tolist()
    texts = [tokenizer.decode(store.tokens[a:b].tolist()) for a, b in pairwise(starts)]
    assert set(texts) < {f" {row}\n" for row in rows}
    assert store.manifest["counts"]["rows"] + store.validation.manifest["counts"]["rows"] == 50


def test_what_filters_drop_counts_as_seen_beside_bad_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [json.dumps({"question": "why", "answer": one}) for one in ("x", *["a long answer"] * 9)]
    source = tmp_path / "data.jsonl"
    source.write_text("\n".join([*rows[:1] * 90, *rows[1:], "{"]))
    filters = {"shortest": 10}
    store = build(tmp_path, tokenizer, source, filters=filters, max_bad=0.01)
    assert store.manifest["dropped"] == {"shortest": 90}
    assert store.manifest["quarantined"] == 1
    with pytest.raises(LinnetError, match=r"1 of 100 rows cannot be used.* set data\.max_bad=0\.01 "):
        build(tmp_path, tokenizer, source, filters=filters, max_bad=0.0)  # prepared data does not hide them


def test_a_held_out_split_of_its_own_is_all_that_is_held_out(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As find_inputs gives a data set of the hub that has one."""
    from linnet.data import prepare as module

    source = write_rows(tmp_path / "data")
    found = [inputs.Input(inputs.LocalFile.at(source / f"{x}.jsonl"), held_out=x == "b") for x in "ab"]
    monkeypatch.setattr(module, "find_inputs", lambda data, *, say: found)
    store = build(tmp_path, tokenizer, source)
    assert store.validation is not None
    assert store.validation.manifest["counts"]["rows"] == len((source / "b.jsonl").read_text().splitlines())


def test_a_file_of_which_no_row_can_be_read_names_the_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "data.jsonl").write_text("\noops\n" * 30)
    with pytest.raises(
        LinnetError, match=r"data\.jsonl:2: not valid JSON.* no other of its rows can be read"
    ):
        build(tmp_path, tokenizer, tmp_path / "data.jsonl")
