"""Speeds in turns: the small forms print what they promise, and nothing is compared that does not compute the same."""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from linnet.device import cpu_has_bf16

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def figures_of(script: str, *arguments: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What `python benchmarks/SCRIPT ... --json` prints, by name."""
    command = [
        sys.executable,
        str(BENCHMARKS / script),
        *arguments,
        "--model",
        "tiny",
        "--device",
        "cpu",
        "--json",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert all(row["min"] <= row["median"] <= row["max"] for row in rows)
    assert all(row.keys() == {"name", "unit", "min", "median", "max"} for row in rows)
    return {row["name"]: row for row in rows}


@pytest.mark.slow
def test_whole_steps_in_turns(tmp_path: Path) -> None:
    names = ("transformers-fp32", *["transformers-bf16"] * cpu_has_bf16(), "linnet", "linnet-fp32")
    given = ("--rounds", "2", "--steps", "2", "--only", *names)
    figures = figures_of("train_throughput.py", *given, folder=tmp_path)
    for name in names:
        assert figures[name]["unit"] == "tokens/s"
        assert figures[name]["min"] > 0
        assert figures[f"{name}-memory"]["max"] > 0.1
        assert figures[f"{name}-share-of-roof"]["max"] > 0
    assert figures["transformers-fp32-times-transformers-fp32"]["median"] == 1
    assert "linnet-times-best-peer" in figures
    first = {name: figures[f"{name}-first-loss"]["median"] for name in names}
    assert first["linnet-fp32"] == pytest.approx(first["transformers-fp32"], abs=1e-3)
    assert {"roof-fp32", *["roof-bf16"] * cpu_has_bf16(), "roof-bytes"} < figures.keys()


@pytest.mark.slow
def test_answers_of_rows_in_turns(tmp_path: Path) -> None:
    names = {"linnet", "linnet-fp32"}
    if importlib.util.find_spec("accelerate") is not None:
        names |= {"trainer-fp32", "trainer-grouped-fp32", "trainer-bf16", "trainer-grouped-bf16"}
    if importlib.util.find_spec("trl") is not None:
        names |= {"trl-packing-fp32", "trl-packing-bf16"}
    if not cpu_has_bf16():
        names = {name for name in names if not name.endswith("bf16")}
    figures = figures_of("finetune_rows.py", "--rounds", "1", "--steps", "8", folder=tmp_path)
    assert names == {name for name, row in figures.items() if row["unit"] == "tokens/s"}
    for name in names:
        learned = figures[f"{name}-learned-per-step"]["median"]
        # 36 examples and half-filled last rows: over so few the ways of batching differ by more than 5 %.
        assert learned == pytest.approx(figures["linnet-learned-per-step"]["median"], rel=0.15)
        assert figures[f"{name}-last-loss"]["median"] < figures[f"{name}-first-loss"]["median"]
        assert figures[f"{name}-mean-loss"]["median"] == pytest.approx(
            figures["linnet-fp32-mean-loss"]["median"], abs=0.1
        )


@pytest.mark.slow
def test_a_candidate_with_another_loss_ends_the_comparison(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two matrices change places before the second candidate reads the weights."""
    benchmark, jobs, turns = module("train_throughput"), module("jobs"), module("turns")
    job = jobs.make_job("tiny", rows=2, block_size=64, steps=3, nanogpt=None, work=tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(vars(job)))
    whole = turns.Candidate.turn

    def damaged(candidate: Any, **sizes: int) -> Any:
        if candidate.name == "linnet-fp32":
            path = tmp_path / "weights/model.safetensors"
            weights = load_file(path)
            for name in ("mlp.c_fc.weight", "attn.c_proj.weight"):
                one, other = f"transformer.h.0.{name}", f"transformer.h.1.{name}"
                weights[one], weights[other] = weights[other].clone(), weights[one].clone()
            save_file(weights, path, metadata={"format": "pt"})
        return whole(candidate, **sizes)

    args = argparse.Namespace(
        only=["transformers-fp32", "linnet-fp32"], nanogpt=None, apart=False, rounds=1, steps=1
    )
    turned, _ = benchmark.run_rounds(args, job, work=tmp_path)
    assert turned.keys() == {"roofs", "transformers-fp32", "linnet-fp32"}
    monkeypatch.setattr(turns.Candidate, "turn", damaged)
    with pytest.raises(SystemExit, match=r"linnet-fp32 begins with a loss of .* do not train alike"):
        benchmark.run_rounds(args, job, work=tmp_path)


def test_losses_are_compared_by_precision(module: Any) -> None:
    speeds = module("speeds")
    ways = {"a": speeds.Way("a", "fp32"), "b": speeds.Way("b", "bf16"), "c": speeds.Way("c", "fp32")}
    speeds.check_losses({"b": 3.01}, ways)
    speeds.check_losses({"b": 3.01, "a": 3.0, "c": 3.0009}, ways)
    for broken in ({"b": 3.03}, {"c": 3.002}, {"c": float("nan")}):
        with pytest.raises(SystemExit, match="say nothing"):
            speeds.check_losses({"a": 3.0, **broken}, ways)


def test_a_process_that_fails_says_why(module: Any, tmp_path: Path) -> None:
    turns = module("turns")
    command = [sys.executable, "-c", "raise SystemExit('no such card')"]
    candidate = turns.Candidate("one", command, folder=tmp_path, environment={})
    with pytest.raises(turns.CandidateError, match="no such card"):
        candidate.turn(warm=0, steps=1)
    assert not candidate.is_running


@pytest.mark.slow
def test_the_small_card(tmp_path: Path) -> None:
    """Without a card its only difference is that nothing is capped."""
    words = [sys.executable, str(BENCHMARKS / "small_card.py"), "--model", "tiny", "--json"]
    words += ["--rows", "200", "--steps", "2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = {row["name"]: row for row in json.loads(done.stdout)}
    assert figures["linnet-small-card-speed"]["min"] > 0
    assert 0.1 < figures["linnet-small-card-memory"]["max"] < 4
    assert figures["linnet-small-card-all-epochs"]["max"] > 0
    assert ("There is no CUDA card here" in done.stderr) != torch.cuda.is_available()
    assert not list(tmp_path.iterdir())
