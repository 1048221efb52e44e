"""Rows outlive kills, full disks and numbers that JSON does not have."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.errors import DiskError, LinnetError
from linnet.track.metrics import RowFile, cut_back, read_metrics, read_rows, scan


def rows_of(steps: range) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = [{"step": 0, "time_s": 0.0, "validation_loss": 9.0}]
    for step in steps:
        rows.append({"step": step, "time_s": step / 10, "loss": 9 / step})
        if step % 5 == 0:
            rows.append({"step": step, "time_s": step / 10, "validation_loss": 9.5 / step})
    return rows


def write(path: Path, rows: list[dict[str, float]]) -> None:
    with RowFile(path) as file:
        for row in rows:
            file.append(row)
        file.sync()


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = rows_of(range(1, 12))
    write(tmp_path / "metrics.jsonl", rows)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


def test_a_row_is_readable_at_once(tmp_path: Path) -> None:
    with RowFile(tmp_path / "metrics.jsonl") as file:
        file.append({"step": 1, "loss": 2.0})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": 1, "loss": math.nan, "grad_norm": math.inf}])

    def refuse(name: str) -> None:
        raise AssertionError(name)

    strict = json.loads(path.read_text(), parse_constant=refuse)
    assert strict == {"step": 1, "loss": None, "grad_norm": None}
    row = read_metrics(path)[0]
    assert math.isnan(row["loss"])
    assert math.isnan(row["grad_norm"])


def test_nested_rows_and_any_text(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    row = {"step": 3, "samples": [{"prompt": "a\nb", "text": "Zürich\u2028 日本 \x00 \ud800", "x": math.inf}]}
    with RowFile(path) as file:
        file.append(row)
    assert len(path.read_bytes().splitlines()) == 1
    back = read_rows(path)[0]["samples"][0]
    assert back == {"prompt": "a\nb", "text": "Zürich\u2028 日本 \x00 ?", "x": None}


@pytest.mark.parametrize("kept", [0, 1, 5, 14])
def test_cut_back_leaves_what_the_checkpoint_knew(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = rows_of(range(1, 12))
    with RowFile(path) as file:
        for row in rows[:kept]:
            file.append(row)
        size = file.size
        for row in rows[kept:]:
            file.append(row)
    for _ in range(2):
        cut_back(path, size)
        assert read_rows(path) == rows[:kept]


def test_interrupted_and_resumed_equals_uninterrupted_byte_for_byte(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    rows = rows_of(range(1, 21))
    write(whole, rows)
    write(broken, rows[:9])
    size = broken.stat().st_size  # the newest checkpoint
    write(broken, rows[9:12])
    with broken.open("ab") as file:
        file.write(b'{"step": 14, "time_')  # killed here
    cut_back(broken, size)
    write(broken, rows[9:])
    assert broken.read_bytes() == whole.read_bytes()


@given(cut=st.integers(0, 400), size=st.integers(0, 400))
def test_cut_anywhere_is_repaired(tmp_path_factory: pytest.TempPathFactory, cut: int, size: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    write(path, rows_of(range(1, 9)))
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    cut_back(path, size)
    kept = content[: min(cut, size) + 1].split(b"\n")[:-1]  # a row that lacks only its newline is whole
    survivors = read_rows(path)
    assert survivors == [json.loads(line) for line in kept]
    write(path, [{"step": 13, "loss": 1.0}])
    assert scan(path) == ([*survivors, {"step": 13, "loss": 1.0}], [])


def test_zeros_that_a_power_failure_left_at_the_end_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": 1}, {"step": 2}])
    with path.open("ab") as file:
        file.write(bytes(5000))
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    cut_back(path, 10_000)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_opening_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x": "' + b"y" * 200_000)
    write(path, [{"step": 2}])
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_last_row_without_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    write(path, [{"step": 3}])
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_damaged_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nrubbish\n[2]\n\xff\xfe\n{"step": 5}\n{"st')
    assert scan(path) == ([{"step": 1}, {"step": 5}], [2, 3, 4])


def test_a_missing_file_has_no_rows_and_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []
    cut_back(tmp_path / "none.jsonl", 3)
    with pytest.raises(LinnetError, match="cannot be read"):
        read_rows(tmp_path)
    with pytest.raises(IsADirectoryError):
        RowFile(tmp_path)


def test_a_full_disk_leaves_no_half_row(tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse, with a short write before it."""
    path = tmp_path / "metrics.jsonl"
    row = {"step": 1, "text": "x" * 600}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with RowFile(path) as file:
            file.append(row)
            with pytest.raises(
                DiskError, match=r"larger than the system allows.*metrics\.jsonl needs [\d,]+ bytes"
            ):
                file.append(row)
            assert path.read_bytes().count(b"\n") == 1
            assert path.read_bytes().endswith(b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert read_rows(path) == [row]


def test_kill_9_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys; from pathlib import Path; from linnet.track.metrics import RowFile\n"
        "file = RowFile(Path(sys.argv[1])); step = 0\n"
        "while True:\n    step += 1; file.append({'step': step, 'loss': 1 / step})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 20
    while (not path.exists() or path.stat().st_size < 5_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    rows, damaged = scan(path)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > 50
    assert damaged == []
