"""Worker processes: what a caller notices of them, and what is left of them when it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from linnet.data import engines
from linnet.errors import OutOfMemoryError

UNGUARDED = """
from linnet.preparing import prepare

print("runs", flush=True)
options = ["data.source=data", "data.format=lines", "data.validation=0", "tokenizer.name=char", "data.workers=2"]
print(prepare("lines", overrides=["model.init_from=scratch", *options])["rows"])
"""
WAITING = """
import os, time
from linnet.data.engines import run

def items():
    return list(run(time.sleep, [0.0, 0.0, *[60.0] * 4], engine="local", workers=2))

items()
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(6):
        (tmp_path / "data" / f"{number}.txt").write_text(f"line {number}\n" * 50)
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["runs", "300"]


def children_of(pid: int) -> list[int]:
    return json.loads(
        "[" + Path(f"/proc/{pid}/task/{pid}/children").read_text().strip().replace(" ", ",") + "]"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_caller(tmp_path: Path, end: signal.Signals) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", WAITING], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while len(children := children_of(caller.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)  # two workers, and multiprocessing's resource tracker
    time.sleep(1.5)
    if end == signal.SIGINT:
        os.killpg(caller.pid, end)  # as a terminal does
    else:
        caller.kill()
    _, errors = caller.communicate(timeout=20)
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert "SpawnProcess" not in errors


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    with pytest.raises(OutOfMemoryError, match=r"data\.workers=1"):
        list(engines.run(os._exit, [9, 9], engine="local", workers=2))
