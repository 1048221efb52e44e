"""What the live view is given of runs: in progress, cut back, broken, and those of very many steps."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import linnet
from linnet.files import Lock
from linnet.serve.runs import Reading
from linnet.track.metrics import RowFile, cut_back
from linnet.track.report import curves
from tests.serve.pages import go_on
from tests.track.test_report import make_run

STATIC = Path(linnet.__file__).parent / "serve" / "static"


def ys(answer: dict[str, Any], name: str = "loss") -> list[float | None]:
    return list(answer["curves"][name]["y"])


def test_a_run_tells_its_curves_on_three_axes_and_its_samples(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    answer = Reading(tmp_path).one("mine")
    assert (answer["whole"], answer["steps"]) == (True, 60)
    assert ys(answer) == pytest.approx([2.0 + 8.0 / step for step in range(1, 61)], rel=1e-6)
    loss = answer["curves"]["loss"]
    assert (loss["step"][-1], loss["tokens"][-1], loss["time"][-1]) == (60, 512 * 60, 600)
    assert answer["curves"]["held_out"]["step"] == [0, 10, 20, 30, 40, 50, 60]
    assert len(ys(answer, "loss_mean")) == 60
    assert [one["step"] for one in answer["samples"]] == [0, 10, 20, 30, 40, 50, 60]
    assert answer["run"]["validation_loss"] == 3.0
    assert "path" not in answer["run"]


def test_only_what_came_later_is_given(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=40)
    reading = Reading(tmp_path)
    first = reading.one("mine")
    again = reading.one("mine", after=first["next"])
    assert not again["whole"]
    assert ys(again) == []
    assert "samples" not in again
    assert again["next"] == first["next"]
    go_on(folder, first=41, last=60)
    later = Reading(tmp_path).one("mine", after=first["next"])
    assert later["curves"]["loss"]["step"] == list(range(41, 61))
    assert later["curves"]["held_out"]["step"] == [50, 60]
    assert ys(first) + ys(later) == ys(Reading(tmp_path).one("mine"))


@pytest.mark.parametrize("change", ["cut back", "cut back and trained again", "another run"])
def test_rows_that_are_no_longer_those_of_then_are_given_anew(tmp_path: Path, change: str) -> None:
    folder = make_run(tmp_path / "mine", steps=40)
    first = Reading(tmp_path).one("mine")
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "another run":
        path.write_bytes(b"".join(lines).replace(b'"loss": 2.', b'"loss": 3.'))
    else:
        cut_back(path, len(b"".join(lines[:20])))
    if change == "cut back and trained again":
        with RowFile(path) as file:
            for step in range(20, 70):
                file.append({"step": step, "time_s": step, "loss": 1.0})
    answer = Reading(tmp_path).one("mine", after=first["next"])
    assert answer["whole"]
    assert len(ys(answer)) == answer["steps"] > 0


@pytest.mark.parametrize(
    "after", ["", "x", "1.2.3", "9.9.9.9", "-1.0.0.0", "1e3.0.0.0", "٣.0.0.0", "1.2.3.4.5", "9" * 5000]
)
def test_a_point_that_is_none_gives_all(tmp_path: Path, after: str) -> None:
    make_run(tmp_path / "mine")
    answer = Reading(tmp_path).one("mine", after=after)
    assert answer["whole"]
    assert len(ys(answer)) == 60


def test_a_hundred_thousand_rows_are_few_points_with_their_spikes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=0)
    rows = [{"step": step, "time_s": step, "loss": 2.0} for step in range(1, 100_001)]
    rows[70_000]["loss"] = 9.0
    rows[80_000]["loss"] = None  # type: ignore[assignment]  # was not finite
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    drawn = ys(Reading(tmp_path).one("mine"))
    assert len(drawn) <= 2_010
    assert 9.0 in drawn
    assert drawn.count(None) == 1


def test_whether_it_runs_is_seen_though_no_file_changes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=40)
    reading = Reading(tmp_path)
    assert reading.all()["runs"][0]["state"] == "stopped"
    with Lock(folder / "lock"):
        until_it_may_read_again(reading)
        states = [reading.all()["runs"][0]["state"] for _ in range(2)]
        assert states == ["running", "running"]
    until_it_may_read_again(reading)
    assert reading.all()["runs"][0]["state"] == "stopped"


def until_it_may_read_again(reading: Reading) -> None:
    for kept in reading._kept.values():
        kept.until = -math.inf


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo'),
        ("metrics.jsonl", b"\x00" * 5000),
        (
            "metrics.jsonl",
            b'{"step": "1", "loss": [1]}\n{"step": 1, "loss": "x"}\n{"step": 1e400, "loss": 1}\n[]\n7\n',
        ),
        ("samples.jsonl", b'{"step": 1, "prompt": "\\ud800", "text": "\\ud800\\u0000"}\n{"st'),
        ("environment.json", b'{"starts": [{"choices": {"ste'),
        ("environment.json", b"[]"),
        ("recipe.toml", b"name = "),
        ("recipe.toml", b'name = "x"\n[train]\nsteps = "many"\n'),
        ("recipe.toml", b"name = 7\ntrain = 7\nmodel = [1]\n"),
    ],
)
def test_files_that_are_half_written_or_broken(tmp_path: Path, file: str, content: bytes) -> None:
    """Through HTTP, as strings that are no text fail only when they become JSON."""
    folder = make_run(tmp_path / "mine")
    make_run(tmp_path / "other")
    if file == "recipe.toml":
        (folder / "environment.json").unlink()
    (folder / file).write_bytes(content)
    with client(tmp_path) as pages:
        runs = pages.get("/runs/data").json()["runs"]
        assert [run["name"] for run in runs] == ["mine", "other"]
        answer = pages.get("/runs/data/mine").json()
        assert answer["run"]["name"] == "mine"


def client(folder: Path) -> httpx.Client:
    """The routes alone, in this process."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from linnet.serve.app import add_errors
    from linnet.serve.runs import runs_router

    app = FastAPI()
    app.include_router(runs_router(folder))
    add_errors(app)
    return TestClient(app)


def test_a_folder_without_runs_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        answer = Reading(folder).all()
        assert answer["runs"] == []
        assert "linnet demo" in answer["hint"]


def test_a_run_itself_may_be_the_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    reading = Reading(folder)
    assert [run["name"] for run in reading.all()["runs"]] == ["mine"]
    assert reading.one("mine")["steps"] == 60


def test_reading_it_does_not_import_plotly() -> None:
    code = (
        "import sys; from pathlib import Path; from linnet.serve.runs import plotly_path, runs_router;"
        "runs_router(Path('.')); assert plotly_path().stat().st_size > 1e6; print('plotly' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_the_lines_have_the_colours_of_the_reports() -> None:
    script = (STATIC / "curves.js").read_text(encoding="utf-8")
    for name in ("EACH_STEP", "TRAINING", "HELD_OUT"):
        assert f'const {name} = "{getattr(curves, name)}";' in script
