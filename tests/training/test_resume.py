"""Resumed equals uninterrupted: kills, signals, locks, changed inputs (R1, R6, R12, R13), through the command line."""

import json
import os
import random
import re
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

from linnet.recipe import RECIPES
from linnet.run import FIXED
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
CARD = ("README.md", "loss.png")  # They say how long it took.


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
        model={path.name: path.read_bytes() for path in (run / "model").iterdir() if path.name not in CARD},
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
FAST = {("forward", 13), ("step", 12), ("evaluate", 11), ("sample", 3), ("save", 2)}


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


# --- full disks, damage, locks (R3, R5, R12 as the command line shows them) ---


def stop_at_step_7(warm: Warm, folder: Path, argv: tuple[str, ...] = TRAIN) -> dict[str, bytes]:
    """Train up to step 7; returns all files of the run."""
    faults = {"point": "forward", "count": 14, "signals": [signal.SIGTERM]}
    code, output = warm.run(*argv, folder=folder, faults=faults)
    assert code == 143, output
    assert saved_steps(folder) == [5, 7]
    return files_of(folder / "run")


def files_of(run: Path) -> dict[str, bytes]:
    """All files of a run but the lock, which says who had it last."""
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def test_a_full_disk_exits_4_and_loses_nothing(warm: Warm, folder: Path, whole: Whole) -> None:
    before = stop_at_step_7(warm, folder)
    code, output = warm.run(*TRAIN, folder=folder, faults={"file_size": 15_000})
    assert code == 4, output
    assert re.search(
        r"^linnet: The file is larger than .* run/.*safetensors needs [\d,]+ bytes", output, re.M
    )
    assert "Traceback" not in output
    now = files_of(folder / "run")
    assert all(now[name] == before[name] for name in before if name.startswith("checkpoints"))
    assert finish(warm, folder) == whole.result


def test_a_damaged_checkpoint_is_said_and_passed_over(warm: Warm, folder: Path, whole: Whole) -> None:
    stop_at_step_7(warm, folder)
    weights = folder / "run" / "checkpoints" / "step-00000007" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[5000] ^= 4
    weights.write_bytes(data)
    code, output = warm.run(*TRAIN, folder=folder)
    assert code == 0, output
    assert "step-00000007/weights.safetensors is damaged" in output
    assert "the newest checkpoint that is whole, step 5." in output
    assert result_of(folder / "run") == whole.result


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see that a process stands")
def test_a_second_process_on_one_run_exits_6(warm: Warm, folder: Path, whole: Whole) -> None:
    """The first stands still in step 7, where it is then killed with -9; its lock is no obstacle."""
    faults = {"point": "forward", "count": 14, "signals": [signal.SIGSTOP]}
    first = warm.start(*TRAIN, folder=folder, faults=faults)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, first.output
        time.sleep(0.01)
    before = files_of(folder / "run")
    code, output = warm.run(*TRAIN, folder=folder)
    assert code == 6, output
    assert f"pid {first.pid} on host {os.uname().nodename}" in output
    assert "Traceback" not in output
    assert files_of(folder / "run") == before
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert finish(warm, folder) == whole.result


# --- R13: changed inputs ---


def changes_of(folder: Path) -> list[list[dict[str, Any]]]:
    """What each start of the run recorded as changed."""
    starts = json.loads((folder / "run" / "environment.json").read_bytes())["starts"]
    return [start["changes"] for start in starts]


def check_refused(warm: Warm, folder: Path, field: str, argv: tuple[str, ...] = TRAIN) -> None:
    """Refused by the name of the field, nothing in the run touched; then accepted, and recorded."""
    before = files_of(folder / "run")
    code, output = warm.run(*argv, folder=folder)
    assert code == 1, output
    assert output.splitlines()[-1].startswith(f"linnet: {field}")
    assert "--accept-changes" in output
    assert "Traceback" not in output
    assert files_of(folder / "run") == before
    code, output = warm.run(*argv, "--accept-changes", folder=folder)
    assert code == 0, output
    assert saved_steps(folder)[-1] == STEPS
    recorded = changes_of(folder)
    assert recorded[0] == []
    assert any(change["key"].startswith(field) for change in recorded[1])


def flip_letter(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_one_changed_byte_of_the_data_is_refused(warm: Warm, folder: Path) -> None:
    stop_at_step_7(warm, folder)
    flip_letter(folder / "text.txt", b"heard", b"heart")
    check_refused(warm, folder, "data.source")


def test_one_changed_byte_of_the_tokenizer_is_refused(warm: Warm, folder: Path) -> None:
    """A character that does not occur in the text: the tokens themselves are the same."""
    text = (folder / "text.txt").read_text()
    (folder / "more.txt").write_text(text + " Q")
    code, output = warm.run(
        "prepare",
        "scratch",
        "data.source=more.txt",
        "data.prepared=made",
        "tokenizer.name=char",
        folder=folder,
    )
    assert code == 0, output
    shutil.copytree(folder / "made" / "tokenizer", folder / "characters")
    argv = (*TRAIN, "tokenizer.name=characters")
    stop_at_step_7(warm, folder, argv)
    flip_letter(folder / "characters" / "tokenizer.json", b'"Q"', b'"X"')
    check_refused(warm, folder, "tokenizer.name", argv)


def test_one_changed_byte_of_the_recipe_is_refused(warm: Warm, folder: Path) -> None:
    shutil.copy(RECIPES / "scratch.toml", folder / "mine.toml")
    argv = ("train", "mine.toml", *TRAIN[2:])
    stop_at_step_7(warm, folder, argv)
    flip_letter(folder / "mine.toml", b"learning_rate = 3e-3", b"learning_rate = 4e-3")
    check_refused(warm, folder, "train.learning_rate", argv)


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("train.batch_size=5", "train.batch_size"),
        ("train.seed=1", "train.seed"),
        ("train.steps=29", "train.steps"),  # Shorter; longer is allowed.
        pytest.param("model.n_embd=32", "model.n_embd", marks=pytest.mark.slow),
        pytest.param("train.optimizer=adamw", "train.optimizer", marks=pytest.mark.slow),
        pytest.param("data.validation=0.2", "data.validation", marks=pytest.mark.slow),
    ],
)
def test_a_changed_key_is_refused(warm: Warm, folder: Path, key: str, field: str) -> None:
    before = stop_at_step_7(warm, folder)
    code, output = warm.run(*TRAIN, key, folder=folder)
    assert code == 1, output
    said = output.splitlines()[-1]
    assert said.startswith(f"linnet: {field} was ")
    assert ("--accept-changes" in said) == (field not in FIXED)  # It is not advised where it cannot help.
    assert files_of(folder / "run") == before


def test_what_may_change_does_not_change_the_result(warm: Warm, folder: Path, whole: Whole) -> None:
    """Also: a text with a new date and the same bytes, and a token store that must be built again."""
    stop_at_step_7(warm, folder)
    os.utime(folder / "text.txt", (1, 1))
    shutil.rmtree(folder / "store")
    keys = {"train.save_every": 3, "train.log_every": 4, "train.keep": 1}
    code, output = warm.run(*TRAIN, *(f"{key}={value}" for key, value in keys.items()), folder=folder)
    assert code == 0, output
    assert result_of(folder / "run").tensors == whole.result.tensors
    assert {change["key"] for change in changes_of(folder)[1]} == keys.keys()
    assert len(saved_steps(folder)) <= 2  # The newest and the best.


def test_a_longer_run_goes_on_and_records_it(warm: Warm, folder: Path, whole: Whole) -> None:
    finish(warm, folder)
    code, output = warm.run(*TRAIN, folder=folder)
    assert code == 0, output
    assert "finished: 30 steps" in output
    code, output = warm.run(*TRAIN, "train.steps=33", folder=folder)
    assert code == 0, output
    assert saved_steps(folder)[-1] == 33
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 34))
    assert [change["key"] for change in changes_of(folder)[1]] == ["train.steps"]


def test_a_damaged_token_store_is_built_again(warm: Warm, folder: Path, whole: Whole) -> None:
    stop_at_step_7(warm, folder)
    tokens = folder / "store" / "tokens.bin"
    data = bytearray(tokens.read_bytes())
    data[100] ^= 1
    tokens.write_bytes(data)
    assert finish(warm, folder) == whole.result
