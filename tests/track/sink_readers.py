"""What a run and its sinks hold, read by what shows it: TensorBoard's own reader, W&B's records, trackio's database."""

import contextlib
import json
import math
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from linnet.track.sinks.wandb_file import records
from tests.training.test_resume import KEYS, UNEQUAL

TRAIN = ("train", "scratch", *KEYS, "--run", "run")
ALL = 'track.sinks=["tensorboard", "wandb", "trackio"]'
Points = dict[str, dict[int, float]]  # curve -> step -> value


def points_of(run: Path) -> Points:
    """What a sink must hold, from metrics.jsonl."""
    points: Points = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key, value in row.items():
            if "validation_loss" in row:
                name = {"validation_loss": "validation/loss", "validation_tokens": "validation/tokens"}.get(
                    key
                )
            else:
                name = None if key == "step" else f"train/{key}"
            if name:
                points.setdefault(name, {})[row["step"]] = math.nan if value is None else value
    return points


def add(points: Points, name: str, step: int, value: float) -> None:
    of_curve = points.setdefault(name, {})
    assert step not in of_curve, f"{name} has step {step} twice"
    of_curve[step] = value


def in_tensorboard(run: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points: Points = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            add(points, tag, event.step, event.value)
    assert {"samples/text_summary", "samples", "recipe"} & set(events.Tags()["tensors"])
    return points


def in_wandb(run: Path) -> Points:
    from wandb.proto.wandb_internal_pb2 import Record

    [folder] = (run / "wandb").glob("offline-run-*")
    [path] = folder.glob("run-*.wandb")
    points: Points = {}
    for raw in records(path.read_bytes()):
        record = Record.FromString(raw)
        if record.WhichOneof("record_type") != "history":
            continue
        values = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        for name, value in values.items():
            if name.startswith(("train/", "validation/")):
                add(points, name, values["_step"], float(value))
    return points


def in_trackio(run: Path) -> Points:
    points: Points = {}
    with sqlite3.connect(run / "trackio" / "linnet.db") as database:
        for step, metrics in database.execute("SELECT step, metrics FROM metrics"):
            for name, value in json.loads(metrics).items():
                if name.startswith(("train/", "validation/")):
                    add(points, name, step, float(value))
    return points


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "trackio": in_trackio}


def assert_same(found: Points, expected: Points, *, timed: bool = True) -> None:
    """Equal but for TensorBoard's 32 bits; `timed` False leaves out what differs when steps are done again."""
    skipped = () if timed else tuple(f"train/{key}" for key in UNEQUAL)
    assert found.keys() == expected.keys()
    for name in expected.keys() - set(skipped):
        assert sorted(found[name]) == sorted(expected[name]), name
        steps = sorted(expected[name])
        np.testing.assert_allclose(
            [found[name][step] for step in steps],
            [expected[name][step] for step in steps],
            rtol=1e-6,
            err_msg=name,
        )


def bits(run: Path) -> dict[str, Any]:
    """What a sink must not change."""
    [last] = sorted((run / "checkpoints").glob("step-*"))[-1:]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "tensors": {path.name: path.read_bytes() for path in last.glob("*.safetensors")},
        "model": (run / "model" / "model.safetensors").read_bytes(),
        "metrics": [{key: value for key, value in row.items() if key not in UNEQUAL} for row in rows],
    }


def running_sinks(folder: Path) -> list[int]:
    """The sinks' processes that were started in this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "linnet.track.sinks" in process.cmdline() and process.cwd() == str(folder):
                found.append(process.pid)
    return found


def bring_up_to_date(name: str, folder: Path, *, first: str = "") -> subprocess.CompletedProcess[str]:
    """The command that a sentence names, as it is typed; `first` is what the shell does before."""
    command = f"{first} exec {sys.executable} -m linnet.track.sinks {name} run"
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
