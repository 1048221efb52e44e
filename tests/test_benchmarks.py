"""The comparison with other trainers is a fair one: where all do the same, all come to the same."""

import importlib
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import linnet
from linnet.data.batches import Batches
from linnet.data.store import Store

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/answers.py as a module; skips where a peer is not installed."""
    for name in ("transformers", "accelerate", "trl"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("answers")


def write_rows(path: Path, *, count: int, seed: int) -> Path:
    """Sums with answers of different lengths."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        numbers = [draw.randrange(100) for _ in range(draw.randrange(2, 9))]
        question = " plus ".join(map(str, numbers))
        rows.append(
            {
                "question": f"What is {question}?",
                "answer": f"{' + '.join(map(str, numbers))} = {sum(numbers)}",
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
def test_with_all_rows_in_each_step_all_ways_of_batching_are_one(answers: Any, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", count=120, seed=1)
    held_out = write_rows(tmp_path / "held-out.jsonl", count=40, seed=2)
    start = linnet.train(
        "math",
        run=tmp_path / "start",
        data={"source": str(train), "validation": 0.0, "prepared": str(tmp_path / "start-prepared")},
        tokenizer={"name": "bpe", "vocab_size": 300},
        model={"init_from": "scratch", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 256},
        train={"steps": 1},
        sample={"max_new_tokens": 0},
    )
    given = ["--model", start.dir / "model", "--train", train, "--held-out", held_out, "--steps", "12"]
    arguments = [*map(str, given), "--seeds", "1", "--generate", "3", "--device", "cpu"]
    setup = answers.make_setup(answers.parse(arguments), tmp_path)
    store = Store.open(Path(setup.prepared))
    rows = Batches(store, block_size=setup.block_size, batch_size=1, seed=1).rows_per_epoch
    assert rows < 120  # several examples lie in one row

    command = [sys.executable, str(BENCHMARKS / "answers.py"), *arguments, "--rows", str(rows), "--json"]
    command += ["--out", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "figures.json").read_bytes()) == json.loads(done.stdout)
    figures = {row["name"]: row.get("median") for row in json.loads(done.stdout)}

    learned = int(store.learn.sum())
    fall = figures["initial-loss"] - figures["linnet-loss"]
    assert fall > 0.02
    for name in ("trainer", "trainer-grouped", "trl-packing"):
        assert figures[f"{name}-learned-per-step"] == figures["linnet-learned-per-step"] == learned
        assert figures[f"{name}-loss"] == pytest.approx(figures["linnet-loss"], abs=0.01 * fall)
    assert figures["trl-packing-real-share"] == 1
    packed = store.pairs / (rows * setup.block_size)
    padded = len(store.tokens) / (120 * (store.longest + 1))
    assert figures["linnet-real-share"] == pytest.approx(packed, abs=1e-4)
    assert figures["trainer-real-share"] == pytest.approx(padded, abs=1e-4)
    for name in answers.NAMES:
        assert 0 <= figures[f"{name}-ended"] <= 1
        assert figures[f"{name}-steps"] == 12
