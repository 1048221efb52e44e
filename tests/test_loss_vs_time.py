"""Loss against time: the clock over nanoGPT's lines, the loss by one rule, and both trainings in small."""

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# Recorded on a CPU, one evaluation every four steps, then made even: a step takes 0.25 s, but for one of 0.35 s;
# an evaluation with its checkpoint 3 s; the start 5 s; compiling 40 s.
LOG = """\
3.0871 Overriding config with config/train_shakespeare_char.py:
3.0871 max_iters = 5000
3.9120 found vocab_size = 8192 (inside ids/meta.pkl)
3.9500 number of parameters: 1.84M
5.0000 step 0: train loss 9.0398, val loss 9.0381
45.2500 iter 0: loss 9.0373, time 43250.00ms, mfu -100.00%
45.5000 iter 1: loss 8.9873, time 250.00ms, mfu -100.00%
45.8500 iter 2: loss 8.9012, time 350.00ms, mfu -100.00%
46.1000 iter 3: loss 8.8410, time 250.00ms, mfu -100.00%
49.1000 step 4: train loss 8.6972, val loss 8.6911
49.1000 saving checkpoint to out
49.3500 iter 4: loss 8.6890, time 3250.00ms, mfu -100.00%
49.6000 iter 5: loss 8.6011, time 250.00ms, mfu 0.10%
49.8500 iter 6: loss 8.5130, time 250.00ms, mfu 0.10%
50.1000 iter 7: loss 8.4120, time 250.00ms, mfu 0.10%
53.1000 step 8: train loss 8.3279, val loss 8.3117
53.3500 iter 8: loss 8.3301, time 3250.00ms, mfu 0.10%
"""


@pytest.fixture
def nanogpt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/nanogpt.py as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("nanogpt")


def test_the_clock_counts_steps_and_neither_evaluations_nor_compiling(nanogpt: Any) -> None:
    evaluations, clock, compiling = nanogpt.read_nanogpt(LOG)
    assert evaluations == [(0, 9.0381), (4, 8.6911), (8, 8.3117)]
    assert clock == pytest.approx({0: 0.0, 4: 1.1, 8: 2.1})
    assert compiling == pytest.approx(40.0)


def test_the_clock_is_the_same_where_only_some_steps_have_a_line(nanogpt: Any) -> None:
    lines = LOG.splitlines(keepends=True)
    sparse = "".join(line for line in lines if not any(f"iter {odd}:" in line for odd in (1, 3, 5, 7)))
    _, clock, _ = nanogpt.read_nanogpt(sparse)
    # Lines 0, 2, 4, 6, 8: the gaps that end at 4 and 8 hold an evaluation and count as the usual 0.275 s a step.
    assert clock == pytest.approx({0: 0.0, 4: 0.275 + 0.6 + 0.275, 8: 2 * 0.275 + 0.6 + 2 * 0.275 + 0.5})


def test_the_first_step_counts_as_a_usual_one(nanogpt: Any) -> None:
    benchmark = importlib.import_module("loss_vs_time")
    rows = [{"step": 0, "time_s": 0.0, "validation_loss": 9.0}]
    rows += [{"step": step, "time_s": 30.0 + 0.5 * step, "loss": 5.0} for step in (10, 20, 30, 40)]
    assert benchmark.first_step(rows) == pytest.approx(30.0)
    assert benchmark.reaches([(0.0, 9.0), (5.0, 4.1), (6.0, 3.9), (7.0, 4.2)], 4.0) == 6.0
    assert benchmark.reaches([(0.0, 9.0), (5.0, 4.1)], 4.0) is None


def test_every_held_out_token_counts_once(nanogpt: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(11, 11, generator=generator)
    ids = torch.randint(11, (1003,), generator=generator)
    expected = torch.nn.functional.cross_entropy(table[ids[:-1]], ids[1:])
    for window in (4, 10, 167, 2000):
        found = nanogpt.mean_loss(lambda x: table[x], ids, window=window)
        assert found == pytest.approx(float(expected), abs=1e-5)


def run_benchmark(tmp_path: Path, *words: str) -> tuple[dict[str, float], dict[str, Any]]:
    """The medians that it prints, and what it keeps."""
    draw = random.Random(1)
    words_known = ["".join(draw.choices("abcdefghij", k=draw.randrange(2, 8))) for _ in range(300)]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(draw.choices(words_known, k=12_000)), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / "loss_vs_time.py"), "--text", str(text), "--json"]
    command += ["--out", str(tmp_path / "out"), "--small", "--seeds", "1", *words]
    root = BENCHMARKS.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/loss-vs-time.png").stat().st_size > 10_000
    kept = json.loads((tmp_path / "out/loss-vs-time.json").read_bytes())
    assert kept["figures"] == json.loads(done.stdout)
    return {row["name"]: row["median"] for row in kept["figures"]}, kept


@pytest.mark.slow
def test_ours_alone_in_small(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    figures, kept = run_benchmark(tmp_path, "--our-steps", "12")
    curve = kept["linnet"][0]["curve"]
    assert len(curve) == 13
    assert curve[0][0] == 0 < curve[-1][0] == pytest.approx(figures["linnet-training"], abs=1e-4)
    assert curve[0][1] - figures["linnet-loss"] > 0.3
    # transformers in fp32 over all of it, and the run's own best evaluation in the training's precision.
    rows = [
        json.loads(line) for line in (tmp_path / "out/linnet-1/run/metrics.jsonl").read_bytes().splitlines()
    ]
    best = min(row["validation_loss"] for row in rows[1:] if "validation_loss" in row)
    assert best == pytest.approx(figures["linnet-loss"], abs=0.02)


@pytest.mark.slow
def test_nanogpt_beside_ours_in_small(tmp_path: Path) -> None:
    checkout = os.environ.get("NANOGPT")
    if checkout is None:
        pytest.skip("NANOGPT does not name a checkout of karpathy/nanoGPT")
    figures, kept = run_benchmark(
        tmp_path,
        "--our-steps",
        "30",
        "--steps",
        "30",
        "--nanogpt",
        checkout,
        "--set",
        "train.learning_rate=4e-3",
    )
    assert figures["nanogpt-steps"] == figures["linnet-steps"] == 30
    assert figures["nanogpt-parameters"] == pytest.approx(figures["linnet-parameters"], rel=0.01)
    assert figures["nanogpt-training"] < figures["nanogpt-whole-process"]
    # Before training both are as good as guessing, by the same rule.
    assert kept["nanogpt"][0]["curve"][0][1] == pytest.approx(kept["linnet"][0]["curve"][0][1], abs=0.1)
    assert figures["linnet-reached"] == 1
    assert figures["linnet-to-nanogpt-loss"] <= figures["linnet-training"]
