"""Sinks beside a training: every point once, through kills too, and nothing that a sink does ends the training."""

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.config import SINKS
from linnet.track.sinks.steps import Follow, Step
from linnet.track.sinks.wandb_file import records
from tests.commands import Command, runner
from tests.training.test_resume import KEYS, UNEQUAL, write_text
from tests.warm import Warm

TRAIN = ("train", "scratch", *KEYS, "--run", "run")
ALL = 'track.sinks=["tensorboard", "wandb", "trackio"]'
Points = dict[str, dict[int, float]]  # curve -> step -> value

pytest.importorskip("tensorboard", reason="needs linnet[track]")
pytest.importorskip("wandb", reason="needs linnet[track]")
pytest.importorskip("trackio", reason="needs linnet[track]")


# --- what a run and each sink hold ---


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


# --- fixtures ---


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home, and nobody's accounts."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(("WANDB_", "TRACKIO_", "XDG_", "NETRC"))]:
            patch.delenv(key)
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def warm(home: Path) -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture(scope="module")
def plain(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bits of a run without sinks."""
    folder = tmp_path_factory.mktemp("plain")
    write_text(folder)
    code, output = warm.run(*TRAIN, folder=folder)
    assert code == 0, output
    return bits(folder / "run")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def linnet(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    return runner(monkeypatch, capfd)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for modules that the sinks' processes find before the installed ones."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def running_sinks(folder: Path) -> list[int]:
    """Processes that name this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"linnet.track.sinks" in words and any(str(folder).encode() in word for word in words):
            found.append(int(entry.name))
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


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_that_is_killed_is_said_and_catches_up_at_the_next_start(
    warm: Warm, folder: Path, name: str, plain: dict[str, Any]
) -> None:
    train = (*TRAIN, f"track.sinks={name}", "track.wait=60")
    run = folder / "run"
    child = warm.start(
        *train, folder=folder, faults={"point": "step", "count": 13, "signals": [signal.SIGSTOP]}
    )
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


def wait_for(what: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


# --- sinks that misbehave ---

HOSTILE = {
    "raises while it is imported": "raise RuntimeError('no luck')",
    "has nothing that is needed": "",
    "ends the process": "import os; os._exit(0)",
    "calls sys.exit": "import sys; sys.exit('goodbye')",
    "kills itself": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "kills its group": "import os, signal; os.killpg(0, signal.SIGKILL)",
    "hangs": "import time; time.sleep(1000)",
    "hangs deaf": "import signal, time; signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(1000)",
    "asks": "input('Enter your API key: ')",
    "asks the terminal": "open('/dev/tty').read()",
    "writes a lot": "print('x' * 100_000_000); raise ValueError('full')",
    "hangs at its end": """
import sys, time
def init(**_): ...
def log(*_, **__): ...
def finish(): time.sleep(1000)
class SQLiteStorage:
    def get_max_step_for_run(*_): ...
Table = dict
sys.modules["trackio.sqlite_storage"] = sys.modules["trackio"]
""",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_that_a_sink_does_reaches_the_training_or_another_sink(
    linnet: Command, folder: Path, package: Path, kind: str, plain: dict[str, Any]
) -> None:
    (package / "trackio.py").write_text(HOSTILE[kind])
    started = time.monotonic()
    result = linnet(*TRAIN, 'track.sinks=["trackio", "tensorboard"]', "track.wait=6")
    assert result.code == 0, result.err
    assert time.monotonic() - started < 30
    assert bits(folder / "run") == plain
    assert_same(in_tensorboard(folder / "run"), points_of(folder / "run"))
    said = [line for line in result.err.splitlines() if line.startswith("trackio: ")]
    assert len(said) == 1, result.err
    assert said[0].endswith("`python -m linnet.track.sinks trackio run` brings them.")
    assert "Traceback" not in result.err
    assert "Enter your API key" not in result.out + result.err
    assert running_sinks(folder) == []


# --- no package, no room, no network ---


def test_a_package_that_is_missing_is_said(linnet: Command, folder: Path, package: Path) -> None:
    (package / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'wandb': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Missing)\n"
    )
    result = linnet(*TRAIN, "track.sinks=wandb")
    assert result.code == 0, result.err
    [sentence] = [line for line in result.err.splitlines() if line.startswith("wandb: ")]
    assert "pip install 'linnet[track]'" in sentence


def test_the_training_does_not_import_a_sink(folder: Path, home: Path) -> None:
    program = (
        "import sys, linnet.api; print([n for n in ('tensorboard', 'wandb', 'trackio') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    program = (
        "import sys, linnet.track.sinks.tensorboard, linnet.track.sinks.wandb; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", "a sink's process is small"


def test_a_folder_that_cannot_be_written_is_said(
    linnet: Command, folder: Path, plain: dict[str, Any]
) -> None:
    (folder / "run").mkdir()
    for name in SINKS:
        (folder / "run" / name).write_text("in the way")
    result = linnet(*TRAIN, ALL)
    assert result.code == 0, result.err
    assert bits(folder / "run") == plain
    for name in SINKS:
        [sentence] = [line for line in result.err.splitlines() if line.startswith(f"{name}: ")]
        assert f"run/{name} cannot be written (File exists)" in sentence


@pytest.mark.parametrize("name", SINKS)
def test_a_full_disk_is_said_and_the_points_come_when_there_is_room(
    linnet: Command, folder: Path, name: str
) -> None:
    assert linnet(*TRAIN).code == 0
    full = bring_up_to_date(name, folder, first="ulimit -f 8;")  # no file grows beyond 4 KiB (bash: 8)
    assert full.returncode != 0, full.stdout + (folder / "run" / name / "output.log").read_text()
    assert full.stdout.endswith(f"`python -m linnet.track.sinks {name} run` brings them.\n"), full
    assert "Traceback" not in full.stdout + full.stderr
    done = bring_up_to_date(name, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(READERS[name](folder / "run"), points_of(folder / "run"))
