"""Every sink receives every point once, through kills of the training and of the sink; a step is what it should be."""

import json
import math
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from linnet.config import SINKS
from linnet.track.sinks.steps import Follow, Step
from tests.track.sink_readers import (
    ALL,
    READERS,
    TRAIN,
    assert_same,
    bits,
    bring_up_to_date,
    points_of,
    running_sinks,
    wait_for,
)
from tests.warm import Warm

# --- rows become steps ---


def rows(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    with (folder / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def numbers(steps: Iterator[Step]) -> list[int]:
    return [step.number for step in steps]


def test_a_step_is_handed_over_once_when_it_is_whole(tmp_path: Path) -> None:
    follow = Follow(tmp_path)
    assert numbers(follow.take()) == []
    rows(tmp_path, "samples", {"step": 0, "prompt": "a", "text": "b"})
    rows(tmp_path, "metrics", {"step": 0, "time_s": 0.0, "validation_loss": 3.0, "validation_tokens": 9})
    [zero] = follow.take()
    assert zero == Step(0, 0.0, {"validation/loss": 3.0, "validation/tokens": 9}, [("a", "b")])
    rows(tmp_path, "metrics", {"step": 1, "time_s": 0.5, "loss": 2.5})
    assert numbers(follow.take()) == []
    rows(tmp_path, "metrics", {"step": 2, "time_s": 1.0, "loss": None})
    assert numbers(follow.take()) == [1]
    rows(tmp_path, "metrics", {"step": 2, "time_s": 1.0, "validation_loss": 2.0, "validation_tokens": 9})
    [two] = follow.take()
    assert two.values.keys() == {"train/time_s", "train/loss", "validation/loss", "validation/tokens"}
    assert math.isnan(two.values["train/loss"])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert numbers(follow.take(ended=True)) == []


def test_the_last_step_of_a_stopped_run_waits_for_its_evaluation(tmp_path: Path) -> None:
    choices = {"eval_every": {"value": 10, "reason": ""}, "steps": {"value": 25, "reason": ""}}
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [{"choices": choices}]}))
    rows(tmp_path, "metrics", {"step": 0, "validation_loss": 3.0})
    follow = Follow(tmp_path)
    assert numbers(follow.take(ended=True)) == [0]
    for step, due in ((9, False), (10, True), (11, False), (25, True)):
        rows(tmp_path, "metrics", {"step": step, "loss": 1.0})
        assert (step not in numbers(follow.take(ended=True))) == due, step


def test_a_run_that_never_evaluates_hands_over_its_last_step(tmp_path: Path) -> None:
    rows(tmp_path, "samples", {"step": 0, "prompt": "", "text": "b"}, {"step": 2, "prompt": "", "text": "c"})
    rows(tmp_path, "metrics", {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0})
    assert numbers(Follow(tmp_path).take(ended=True)) == [0, 1, 2]


# --- real sinks ---


def test_every_sink_receives_every_point_once(
    warm: Warm, home: Path, folder: Path, plain: dict[str, Any]
) -> None:
    code, output = warm.run(*TRAIN, ALL, "track.wait=60", folder=folder)
    assert code == 0, output
    assert bits(folder / "run") == plain
    for name, read in READERS.items():
        assert_same(read(folder / "run"), points_of(folder / "run"))
        assert "Traceback" not in (folder / "run" / name / "output.log").read_text()
    written = [path for path in home.rglob("*") if "matplotlib" not in str(path) and path.is_file()]
    assert not written, "no sink writes into the home directory"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"store", "run"}
    sentence = [line for line in output.splitlines() if line.startswith("wandb: offline")]
    assert len(sentence) == 1
    assert "no account is known" in sentence[0]
    [command] = re.findall(r"`wandb sync (\S+)`", sentence[0])
    assert Path(command).is_dir()
    assert running_sinks(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SINKS)
def test_after_kill_9_and_resume_the_points_are_the_same(
    warm: Warm, folder: Path, name: str, plain: dict[str, Any]
) -> None:
    """Killed in step 14: the last checkpoint is of step 10, steps 11 to 13 have been posted."""
    train = (*TRAIN, f"track.sinks={name}", "track.wait=60")
    run = folder / "run"
    code, output = warm.run(*train, folder=folder, faults={"point": "step", "count": 14})
    assert code == -signal.SIGKILL, output
    wait_for(lambda: not running_sinks(folder))
    assert sorted(READERS[name](run)["train/loss"]) == list(range(1, 14))
    # Killed again, and gone on with at once, while the sink is still about to post steps 11 to 17.
    code, output = warm.run(*train, folder=folder, faults={"point": "step", "count": 8})
    assert code == -signal.SIGKILL, output
    code, output = warm.run(*train, folder=folder)
    assert code == 0, output
    assert bits(run) == plain
    assert_same(READERS[name](run), points_of(run), timed=False)
    assert bring_up_to_date(name, folder).returncode == 0
    assert_same(READERS[name](run), points_of(run), timed=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SINKS)
def test_a_sink_that_is_killed_is_said_and_catches_up_at_the_next_start(
    warm: Warm, folder: Path, name: str, plain: dict[str, Any]
) -> None:
    train = (*TRAIN, f"track.sinks={name}", "track.wait=60")
    run = folder / "run"
    child = warm.start(
        *train, folder=folder, faults={"point": "step", "count": 13, "signals": [signal.SIGSTOP]}
    )
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    wait_for(lambda: (run / name / "lock").is_file() and (run / name / "lock").read_bytes())
    time.sleep(2.0)  # in the midst of its work
    os.kill(json.loads((run / name / "lock").read_bytes())["pid"], signal.SIGKILL)
    child.kill(signal.SIGCONT)
    assert child.wait() == 0, child.output
    assert bits(run) == plain
    sentence = f"{name}: its process ended (signal 9); metrics.jsonl has all rows, and after the training "
    assert child.output.count(sentence + f"`python -m linnet.track.sinks {name} run`") == 1, child.output
    done = bring_up_to_date(name, folder)
    assert done.returncode == 0, done.stdout
    assert_same(READERS[name](run), points_of(run), timed=False)
