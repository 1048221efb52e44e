"""The pictures: they exist, show what the rows say, cope with odd rows, and leave no traces."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from linnet.track.metrics import Row, RowFile
from linnet.track.plots import SMOOTHED, VALIDATION, Curve, moving_mean, plot_run, plot_runs, thin_out


def fall(steps: int, *, start: float = 10.0, floor: float = 3.0) -> list[Row]:
    rows: list[Row] = [{"step": 0, "time_s": 0.0, "validation_loss": start}]
    for step in range(1, steps + 1):
        rows.append({"step": step, "loss": floor + (start - floor) / (1 + step / 10)})
        if step % max(1, steps // 5) == 0:
            rows.append({"step": step, "validation_loss": floor + 0.1 + abs(step / steps - 0.6)})
    return rows


def make_run(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(parents=True)
    with RowFile(folder / "metrics.jsonl") as file:
        for row in rows:
            file.append(row)
    return folder


def pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def pixels_of(path: Path, colour: str) -> int:
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return int((abs(pixels(path) - wanted).max(axis=2) < 12).sum())


def test_a_run_gets_a_picture_with_both_curves(tmp_path: Path) -> None:
    picture = plot_run(make_run(tmp_path / "a$^{$b", fall(200)))  # no formula
    assert picture == tmp_path / "a$^{$b" / "loss.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert pixels(picture).shape == (720, 1200, 3)
    assert pixels_of(picture, SMOOTHED) > 1000
    assert pixels_of(picture, VALIDATION) > 1000
    assert sorted(path.name for path in picture.parent.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_without_validation_there_is_no_second_curve(tmp_path: Path) -> None:
    rows = [row for row in fall(50) if "loss" in row]
    picture = plot_run(make_run(tmp_path / "mine", rows))
    assert picture is not None
    assert pixels_of(picture, VALIDATION) == 0


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": None}],
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}],
        [{"loss": 3.0}, {"step": "x", "loss": 3.0}, {"step": 1, "loss": "x"}],
    ],
)
def test_nothing_to_draw_makes_no_file(tmp_path: Path, rows: list[Row]) -> None:
    folder = make_run(tmp_path / "mine", rows)
    assert plot_run(folder) is None
    assert plot_runs({"mine": rows}, tmp_path / "all.png") is None
    assert not (folder / "loss.png").exists()
    assert not (tmp_path / "all.png").exists()


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "loss": 3.0}],
        [{"step": 0, "validation_loss": 3.0}],
        [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 5.0}],
        [{"step": 1, "loss": 1e-9}, {"step": 2, "loss": 1e30}],
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 1.0}],
        [{"step": 10**9 + at, "loss": 2.0} for at in range(30)],
    ],
)
def test_odd_rows_are_drawn(tmp_path: Path, rows: list[Row]) -> None:
    assert plot_run(make_run(tmp_path / "mine", rows)) is not None


def test_several_runs_with_awkward_names(tmp_path: Path) -> None:
    names = ["_hidden", "a$^{$b", "長い名前", "x" * 80, "\\frac", "e", "f", "g", "h"]
    runs = {name: fall(20 + 30 * number) for number, name in enumerate(names)}
    picture = plot_runs({**runs, "empty": []}, tmp_path / "all.png")
    assert picture is not None
    assert pixels_of(picture, "#0072B2") > 500


def test_moving_mean_follows_a_line_exactly_and_stays_inside() -> None:
    line = np.linspace(9.0, 3.0, 50)
    assert np.allclose(moving_mean(line, half=7)[:43], line[:43])
    noise = np.random.default_rng(1).normal(size=400)
    mean = moving_mean(noise, half=20)
    assert mean[0] == noise[0]
    assert np.isclose(mean[-1], noise[-21:].mean())
    assert np.isclose(mean[200], noise[180:221].mean())


def test_thin_out_keeps_spikes_and_order() -> None:
    steps, values = np.arange(50_000.0), np.ones(50_000)
    values[[777, 33_333]] = [9.0, -5.0]
    thin_steps, thin_values = thin_out(steps, values)
    assert len(thin_values) <= 2_000
    assert {9.0, -5.0} <= set(thin_values)
    assert (np.diff(thin_steps) > 0).all()


def test_best_is_the_first_lowest_finite_validation_loss() -> None:
    losses = [1.0, math.nan, 2.0, 2.0, 3.0]  # step 0 does not count
    assert Curve.of([{"step": at, "validation_loss": x} for at, x in enumerate(losses)]).best == (2, 2.0)
    assert Curve.of([{"step": 0, "validation_loss": 4.0}]).best == (0, 4.0)
    assert Curve.of([{"step": 1, "loss": 2.0}]).best is None


def test_a_name_that_is_not_utf8_is_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / os.fsdecode(b"b\xff"), fall(5))
    assert plot_run(folder) is not None
    assert plot_runs({folder.name: fall(5)}, tmp_path / "all.png") is not None


def test_an_old_picture_is_replaced_and_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", fall(5))
    (folder / "loss.png").write_bytes(b"old")
    assert plot_run(folder) is not None
    assert (folder / "loss.png").stat().st_size > 5_000
    with pytest.raises(OSError, match="missing"):
        plot_runs({"mine": fall(5)}, tmp_path / "missing" / "all.png")


def test_a_fresh_process_writes_nothing_but_the_picture(tmp_path: Path) -> None:
    """No ~/.config/matplotlib, no font cache, no word on stderr, matplotlib only when drawing."""
    folder = make_run(tmp_path / "run", fall(30))
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    program = (
        "import sys; from pathlib import Path; import linnet.track.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.plot_run(Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
        "import os; assert 'MPLCONFIGDIR' not in os.environ\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "home").rglob("*")) == []
    assert list((tmp_path / "tmp").rglob("*")) == []
    assert (folder / "loss.png").exists()
