"""Nothing that a sink does, or that is done to it, reaches the training or another sink."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from linnet.config import SINKS
from tests.commands import Command
from tests.track.sink_readers import (
    ALL,
    READERS,
    TRAIN,
    assert_same,
    bits,
    bring_up_to_date,
    in_tensorboard,
    points_of,
    running_sinks,
)

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


FAST = {"ends the process", "calls sys.exit"}  # 3 s each


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in HOSTILE]
)
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


@pytest.mark.slow
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
