"""The table of runs: right numbers, broken folders named, live runs seen."""

import fcntl
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from linnet.errors import LinnetError
from linnet.files import Lock
from linnet.overview import show
from linnet.track.metrics import RowFile
from linnet.track.runs import find_runs, summarize
from linnet.track.table import print_table
from linnet.training.loop import MOST_SKIPPED

RECIPE = (
    'format_version = 1\nname = "{recipe}"\n[model]\ninit_from = "{parent}"\n[train]\nepochs = 2.0\n{more}'
)


def make_run(
    folder: Path, *, steps: int, planned: int, recipe: str = "text", parent: str = "scratch", more: str = ""
) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE.format(recipe=recipe, parent=parent, more=more))
    starts = [{"choices": {"steps": {"value": value, "reason": "asked for"}}} for value in (7, planned)]
    (folder / "environment.json").write_text(json.dumps({"parents": {}, "starts": starts}))
    with RowFile(folder / "metrics.jsonl") as file:
        file.append({"step": 0, "time_s": 0.0, "validation_loss": 0.5})
        for step in range(1, steps + 1):
            file.append({"step": step, "time_s": step / 10, "loss": 100.0 / step, "tokens": 512 * step})
            if step % 10 == 0:
                file.append({"step": step, "time_s": step / 10, "validation_loss": 3.0 + abs(step - 20)})
    return folder


def add_model(folder: Path) -> None:
    (folder / "model").mkdir()
    save_file({"wte.weight": np.zeros((50, 30), np.float32)}, str(folder / "model" / "model.safetensors"))
    (folder / "model" / "config.json").write_text("{}")


def table(folder: Path, width: int) -> list[str]:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    print_table([summarize(path) for path in find_runs(folder)], console=console)
    console.file.close()
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_numbers_come_from_the_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=40, planned=100, parent="gpt2")
    add_model(folder)
    run = summarize(folder)
    assert (run.name, run.recipe, run.parent, run.state) == ("mine", "text", "gpt2", "stopped")
    assert (run.step, run.steps, run.time_s, run.tokens_per_s) == (40, 100, 4.0, 5120.0)
    assert run.training_loss == pytest.approx(sum(100 / step for step in range(21, 41)) / 20)
    assert (run.validation_loss, run.best_step) == (3.0, 20)
    assert run.parameters == 1500
    assert run.model_bytes == sum(path.stat().st_size for path in (folder / "model").iterdir())
    assert run.problems == []


def test_states(tmp_path: Path) -> None:
    assert summarize(make_run(tmp_path / "a", steps=40, planned=40)).state == "finished"
    assert summarize(make_run(tmp_path / "b", steps=0, planned=40)).state == "new"
    assert (
        summarize(make_run(tmp_path / "c", steps=40, planned=90, more="patience = 2")).state == "early stop"
    )
    assert summarize(make_run(tmp_path / "d", steps=40, planned=90, more="patience = 3")).state == "stopped"


def test_a_run_that_diverged_is_not_merely_stopped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=40, planned=90)
    with RowFile(folder / "metrics.jsonl") as file:
        for step in range(41, 41 + MOST_SKIPPED):
            assert summarize(folder).state == "stopped"
            loss = math.nan if step % 2 else 2.0
            file.append({"step": step, "loss": loss, "grad_norm": math.inf if loss == 2.0 else 1.0})
    assert summarize(folder).state == "diverged"
    with Lock(folder / "lock"):
        assert summarize(folder).state == "running"


def test_a_link_has_its_own_name(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere" / "mine", steps=4, planned=4)
    (tmp_path / "runs").mkdir()
    make_run(tmp_path / "runs" / "mine", steps=4, planned=4)
    (tmp_path / "runs" / "best").symlink_to(tmp_path / "elsewhere" / "mine")
    assert [summarize(path).name for path in find_runs(tmp_path / "runs")] == ["best", "mine"]


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=40, planned=100)
    with Lock(folder / "lock"):
        assert summarize(folder).state == "running"
    assert summarize(folder).state == "stopped"  # this process lives on, but holds no lock
    program = (
        "import sys, time; from pathlib import Path; from linnet.files import Lock\n"
        "with Lock(Path(sys.argv[1])):\n    print('locked', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "lock")],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        assert summarize(folder).state == "running"
        os.kill(child.pid, signal.SIGKILL)
    assert summarize(folder).state == "stopped"


def test_looking_is_no_running(tmp_path: Path) -> None:
    """Another `linnet runs` holds the lock shared for a moment; a process that is gone holds nothing."""
    folder = make_run(tmp_path / "mine", steps=40, planned=100)
    (folder / "lock").write_text('{"pid": 1, "host": "elsewhere"}')
    with (folder / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert summarize(folder).state == "stopped"
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        (folder / "lock").write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
        fcntl.flock(file, fcntl.LOCK_EX)
        assert summarize(folder).state == "stopped"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "host": "elsewhere"}'])
def test_a_strange_lock_file_is_no_running_run(tmp_path: Path, content: str) -> None:
    folder = make_run(tmp_path / "mine", steps=40, planned=40)
    (folder / "lock").write_text(content)
    assert summarize(folder).state == "finished"


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("recipe.toml", b"x = [", "recipe.toml cannot be read"),
        ("recipe.toml", b"\xff\xfe", "recipe.toml cannot be read"),
        ("recipe.toml", b"model = 3\ntrain = []", None),
        ("environment.json", b"{", "environment.json cannot be read"),
        ("environment.json", b'{"starts": [3]}', None),
        ("metrics.jsonl", b'{"step": 1, "loss": 2.5}\nrubbish\n', "metrics.jsonl:2: 1 line is damaged"),
        ("metrics.jsonl", b'{"step": 1}\n{"step": null, "loss": 1}\n{"step": "x", "loss": "y"}\n', None),
        ("model/model.safetensors", b"short", "cannot be read"),
        ("model/model.safetensors", b"\xff" * 100, "cannot be read"),
        ("model/model.safetensors", b"\x02" + b"\0" * 7 + b"[]", "cannot be read"),
        ("model/pytorch_model.bin", b"x", None),
    ],
)
def test_broken_files_cost_their_columns_and_are_named(
    tmp_path: Path, file: str, content: bytes, problem: str | None
) -> None:
    folder = make_run(tmp_path / "mine", steps=3, planned=3)
    add_model(folder)
    (folder / file).write_bytes(content)
    run = summarize(folder)
    assert [problem in text for text in run.problems] == ([] if problem is None else [True])
    assert "mine" in "\n".join(table(tmp_path, 120))


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.toml").write_text('name = "text"\n[train]\nsteps = 9\n')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 4, "loss": null}\n')
    (tmp_path / "b" / "model").mkdir()
    a, b = (summarize(path) for path in find_runs(tmp_path))
    assert (a.steps, a.step, a.state, a.problems) == (9, 0, "new", [])
    assert (b.steps, b.step, b.training_loss) == (None, 4, None)
    assert b.problems == ["recipe.toml is missing", "model/ holds no .safetensors file"]


def test_runs_are_found_by_name_in_natural_order(tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "alpha", ".hidden"):
        make_run(tmp_path / name, steps=1, planned=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    assert [path.name for path in find_runs(tmp_path)] == ["alpha", "run-2", "run-10"]
    assert find_runs(tmp_path / "alpha") == [tmp_path / "alpha"]
    for wrong in ("other", "missing", "file"):
        with pytest.raises(LinnetError, match=wrong):
            find_runs(tmp_path / wrong)


def test_the_table_fits_and_loses_whole_columns_only(tmp_path: Path) -> None:
    add_model(make_run(tmp_path / "shakespeare-char-with-muon", steps=40, planned=50_000))
    add_model(make_run(tmp_path / "[bold]b\x1b[2J", steps=40, planned=40, recipe="lines", parent="runs/x"))
    wide, narrow = table(tmp_path, 130), table(tmp_path, 80)
    assert all(len(line) <= 80 for line in narrow)
    for word in ("recipe", "from", "at step", "tokens/s", "model/"):
        assert word in wide[0]
    assert wide[1].split() == [
        *("[bold]b�[2J", "lines", "runs/x", "finished"),
        *("40", "3.404", "3.000", "20", "5,120", "0:04", "1.5k", "0.0", "MB"),
    ]
    assert "40/50,000" in narrow[2]
    assert "held-out" in narrow[0]
    assert "recipe" not in narrow[0]
    assert not any("…" in line for line in narrow)


def test_show_prints_json_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", steps=30, planned=30)
    make_run(tmp_path / "b", steps=20, planned=30)
    show(tmp_path, plot=tmp_path / "all.png", as_json=True)
    out, err = capsys.readouterr()
    runs: list[dict[str, Any]] = json.loads(out)["runs"]
    assert [(run["name"], run["state"], run["step"]) for run in runs] == [
        ("a", "finished", 30),
        ("b", "stopped", 20),
    ]
    assert "all.png" in err
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    show(tmp_path)
    out = capsys.readouterr().out
    assert "finished" in out
    assert "\x1b" not in out


def test_nothing_to_draw_is_an_error_in_words(tmp_path: Path) -> None:
    make_run(tmp_path / "a", steps=0, planned=30)
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(LinnetError, match="nothing to draw"):
        show(tmp_path, plot=tmp_path / "all.png")


def test_the_table_needs_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "a", steps=3, planned=3)
    program = (
        "import sys; from pathlib import Path; from linnet.overview import show; show(Path(sys.argv[1]))\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == 0
