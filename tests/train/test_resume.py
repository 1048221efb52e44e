"""Resumed equals uninterrupted: kills, signals, locks, changed inputs (R1, R6, R12, R13), through the command line."""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.warm import Warm

STEPS, SAVE_EVERY, EVAL_EVERY, MICRO_BATCHES = 30, 5, 10, 2
KEYS = (
    "data.source=text.txt",
    "data.prepared=store",
    "tokenizer.name=char",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.n_positions=16",
    f"train.steps={STEPS}",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.block_size=16",
    f"train.save_every={SAVE_EVERY}",
    f"train.eval_every={EVAL_EVERY}",
    "train.eval_tokens=100",
    'sample.prompts=["a", "be"]',
    "sample.max_new_tokens=4",
)
TRAIN = ("train", "scratch", *KEYS, "--run", "run")
UNEQUAL = ("time_s", "tokens_per_s", "memory_gb")


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


def write_text(folder: Path) -> None:
    words = ["the", "bird", "sings", "a", "song", "that", "it", "has", "heard"]
    rng = random.Random(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(800)))


@dataclass(frozen=True)
class Result:
    """What must be the same, bit for bit, however often a run was stopped."""

    tensors: dict[str, bytes]
    metrics: list[dict[str, Any]]
    samples: bytes
    model: dict[str, bytes]
    state: dict[str, Any]
    recipe: bytes


def result_of(run: Path, *, step: int = STEPS) -> Result:
    checkpoint = run / "checkpoints" / f"step-{step:08d}"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((checkpoint / "state.json").read_bytes())
    del state["loop"]["time_s"], state["row_bytes"]
    return Result(
        tensors={path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")},
        metrics=[{key: value for key, value in row.items() if key not in UNEQUAL} for row in rows],
        samples=(run / "samples.jsonl").read_bytes(),
        model={path.name: path.read_bytes() for path in (run / "model").iterdir()},
        state=state,
        recipe=(run / "recipe.toml").read_bytes(),
    )


@dataclass(frozen=True)
class Whole:
    """A run that was never stopped."""

    result: Result
    seconds: float


@contextmanager
def folder_with_text() -> Iterator[Path]:
    """In memory where that can be: a training syncs some 400 times, which takes 2 s on a busy disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        write_text(Path(name))
        yield Path(name)


@pytest.fixture(scope="module")
def whole(warm: Warm) -> Whole:
    """Two uninterrupted runs: they must be equal themselves, and the second knows how long one takes."""
    results = []
    for _ in range(2):
        with folder_with_text() as folder:
            started = time.monotonic()
            code, output = warm.run(*TRAIN, folder=folder)
            seconds = time.monotonic() - started
            assert code == 0, output
            results.append(result_of(folder / "run"))
    assert results[0] == results[1]
    assert len(results[0].tensors) == 2
    assert len(results[0].metrics) == STEPS + 1 + STEPS // EVAL_EVERY
    assert len(results[0].samples.splitlines()) == 2 * (1 + STEPS // EVAL_EVERY)
    return Whole(results[0], seconds)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with the text, without a run."""
    with folder_with_text() as folder:
        yield folder


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "run" / "checkpoints").glob("step-*"))


def finish(warm: Warm, folder: Path) -> Result:
    code, output = warm.run(*TRAIN, folder=folder)
    assert code == 0, output
    assert not list((folder / "run").rglob(".*")), "no leftovers"
    return result_of(folder / "run")


# --- R1 ---


def kill_once(warm: Warm, folder: Path, rng: random.Random, *, in_save: bool, seconds: float) -> bool:
    """Start or go on, and kill -9 at a random point; False if it was finished before."""
    if in_save:
        where = {"point": "operation", "save": rng.randint(1, 3), "count": rng.randint(1, 35)}
        child = warm.start(*TRAIN, folder=folder, faults=where)
    else:
        child = warm.start(*TRAIN, folder=folder)
        time.sleep(rng.uniform(0, seconds))
        child.kill()
    code = child.wait()
    assert code in (0, -signal.SIGKILL), child.output
    return code != 0


@pytest.mark.parametrize(
    "kills",
    [
        3,
        pytest.param(10, marks=pytest.mark.slow),
        pytest.param(200, marks=[pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(3000)]),
    ],
)
def test_killed_anywhere_and_resumed_it_is_bit_identical(
    warm: Warm, folder: Path, whole: Whole, kills: int
) -> None:
    """R1. Each training gets up to eight kills, then is finished and compared; at least half of all kills
    are inside a checkpoint write, the others at a random moment from the start of the process on."""
    done = in_save = finished = 0
    rng = random.Random(kills)
    while done < kills:
        wants_save = in_save * 2 <= done
        hit = kill_once(warm, folder, rng, in_save=wants_save, seconds=whole.seconds)
        done += hit
        in_save += hit and wants_save
        if not hit or done % 8 == 0 or done == kills:
            assert finish(warm, folder) == whole.result, f"after {done} kills"
            finished += 1
            shutil.rmtree(folder / "run")
    assert in_save * 2 >= kills
    assert finished >= kills // 8


@pytest.mark.parametrize("count", [1, 2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_killed_while_model_is_written(warm: Warm, folder: Path, whole: Whole, count: int) -> None:
    """The fourth is that of the last step: the run must not count as finished without it."""
    code, _ = warm.run(*TRAIN, folder=folder, faults={"point": "model", "count": count})
    assert code == -signal.SIGKILL
    assert finish(warm, folder) == whole.result


# --- R6 ---

PLACES = [  # Point, its count, the last finished step when the signal is seen.
    ("forward", 1, 0),
    ("forward", 13, 6),  # The first of two micro-batches of step 7: the second is not begun.
    ("forward", 14, 7),  # The last one: step 7 is finished.
    ("step", 12, 12),
    ("evaluate", 1, 0),
    ("evaluate", 5, 10),  # Three batches each time: the third is not begun.
    ("evaluate", 6, 10),
    ("evaluate", 11, 30),  # All steps are done, but the run is not finished without its last evaluation.
    ("sample", 2, 0),
    ("sample", 3, 10),  # Step 10 is saved twice: before its evaluation, and after it.
    ("sample", 4, 10),
    ("save", 2, 10),
    ("model", 1, 5),  # Where no evaluation has told the best yet, model/ is the last.
]
FAST = {("forward", 13), ("step", 12), ("evaluate", 6), ("sample", 3), ("save", 2)}


@pytest.mark.parametrize(
    ("point", "count", "step", "number"),
    [
        pytest.param(*place, number, marks=[] if place[:2] in FAST and even else pytest.mark.slow)
        for i, place in enumerate(PLACES)
        for number, even in ((signal.SIGTERM, i % 2 == 0), (signal.SIGINT, i % 2 == 1))
    ],
)
def test_a_signal_saves_the_last_finished_step(
    warm: Warm, folder: Path, whole: Whole, point: str, count: int, step: int, number: int
) -> None:
    code, output = warm.run(
        *TRAIN, folder=folder, faults={"point": point, "count": count, "signals": [number]}
    )
    assert code == 128 + number, output
    assert "stopped by" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert saved_steps(folder)[-1] == step
    assert finish(warm, folder) == whole.result


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "where", [{"point": "forward", "count": 30}, {"point": "operation", "save": 3, "count": 12}]
)
def test_a_second_signal_is_immediate(
    warm: Warm, folder: Path, whole: Whole, where: dict[str, Any], number: int
) -> None:
    """Nothing more is saved, the checkpoints are whole, and it goes on from the last one."""
    code, output = warm.run(*TRAIN, folder=folder, faults=where | {"signals": [number, number]})
    assert code == 128 + number, output
    assert saved_steps(folder)[-1] == 10
    assert finish(warm, folder) == whole.result
