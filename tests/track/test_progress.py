"""The progress line in a real pseudo-terminal and in a file."""

import fcntl
import io
import math
import os
import re
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from linnet.track.progress import BytesProgress, Progress, TrainingProgress, duration, printable

WIDTH = 64


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A pseudo-terminal of WIDTH columns; `screen` is what a person would see."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self.raw = ""

    def screen(self) -> list[str]:
        os.set_blocking(self.master, False)
        try:
            while chunk := os.read(self.master, 65536):
                self.raw += chunk.decode()
        except BlockingIOError:
            pass
        lines, column = [[" "] * WIDTH], 0
        for character in self.raw:
            if character == "\r":
                column = 0
            elif character == "\n":
                lines.append([" "] * WIDTH)
            else:
                assert column < WIDTH, "the line wrapped"
                lines[-1][column] = character
                column += 1
        return ["".join(line).rstrip() for line in lines]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    yield terminal
    terminal.stream.close()
    os.close(terminal.master)


def step_row(step: int, loss: float = 3.0) -> dict[str, float]:
    return {"step": step, "loss": loss, "tokens_per_s": 12_000.0}


def test_a_terminal_shows_one_line_that_is_redrawn(terminal: Terminal) -> None:
    """The share, 20 %, does not fit into 64 columns and is left out."""
    clock = Clock()
    with TrainingProgress(500, stream=terminal.stream, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 0.5
            progress.row(step_row(step))
        assert terminal.screen() == ["step 100/500  loss 3.000  3 min 20 s left  12,000 tokens/s"]
        progress.row({"step": 100, "validation_loss": 3.1})
        for step in range(101, 121):
            clock.now += 0.5
            progress.row(step_row(step))
        progress.say("a sample\nof two lines")
    first, sample, more, last, empty = terminal.screen()
    assert first.startswith("step 100/500  loss 3.000  validation 3.100  3 min 20 s left")
    assert (sample, more) == ("a sample", "of two lines")
    assert last.startswith("step 120/500")
    assert empty == ""
    assert "\x1b" not in terminal.raw


def test_drawing_is_limited_to_ten_a_second(terminal: Terminal) -> None:
    clock = Clock()
    progress = TrainingProgress(10_000, stream=terminal.stream, clock=clock)
    for step in range(1, 10_001):
        clock.now += 0.001
        progress.row(step_row(step))
        if step % 100 == 0:
            terminal.screen()  # a full terminal would block the writer
    assert terminal.raw.count("step") <= 101


def log(progress_class: type[TrainingProgress], steps: int, *, seconds_per_step: float) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    with progress_class(steps, stream=stream, clock=clock) as progress:
        for step in range(1, steps + 1):
            clock.now += seconds_per_step
            progress.row(step_row(step))
    text = stream.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    return text.splitlines()


def test_a_log_file_gets_plain_lines_now_and_then() -> None:
    lines = log(TrainingProgress, 1000, seconds_per_step=0.06)
    assert 10 <= len(lines) <= 14  # a minute
    assert lines[0] == "step 84/1,000  loss 3.000  55 s left  12,000 tokens/s  8 %"
    assert lines[-1].startswith("step 1,000/1,000")
    assert "left" not in lines[-1]
    assert len(log(TrainingProgress, 100_000, seconds_per_step=0.86)) < 400  # a day
    assert log(TrainingProgress, 5, seconds_per_step=0.01) == ["step 5/5  loss 3.000  12,000 tokens/s  100 %"]


def test_evaluations_always_leave_a_line() -> None:
    clock, stream = Clock(), io.StringIO()
    with TrainingProgress(10, stream=stream, clock=clock) as progress:
        progress.row({"step": 0, "validation_loss": 9.0})
        clock.now += 2.0
        progress.row(step_row(1))
        progress.row({"step": 1, "validation_loss": 8.0})
    assert stream.getvalue().splitlines() == [
        "step 0/10  validation 9.000  0 %",
        "step 1/10  loss 3.000  validation 8.000  12,000 tokens/s  10 %",
    ]


def test_time_left_counts_only_what_came_after_the_first_step_of_this_start() -> None:
    clock = Clock()
    progress = Progress(1000, done=900, stream=io.StringIO(), clock=clock)
    clock.now += 500.0  # an evaluation, then a slow first step
    progress.update(900)
    clock.now += 30.0
    progress.update(901)
    assert progress.seconds_left() is None
    clock.now += 2.0
    progress.update(902)
    assert progress.seconds_left() == pytest.approx(196)
    for step in range(903, 951):
        clock.now += 2.0
        progress.update(step)
    assert progress.seconds_left() == pytest.approx(100)
    progress.update(1000)
    assert progress.seconds_left() is None


def test_time_left_follows_a_change_of_speed() -> None:
    clock = Clock()
    progress = Progress(10_000, stream=io.StringIO(), clock=clock)
    for step in range(1, 1001):
        clock.now += 0.1
        progress.update(step)
    assert progress.seconds_left() == pytest.approx(900, rel=0.05)
    for step in range(1001, 3001):
        clock.now += 0.4
        progress.update(step)
    assert progress.seconds_left() == pytest.approx(2800, rel=0.05)


def test_a_thousandth_of_a_step_is_spent_on_progress() -> None:
    progress = TrainingProgress(10**9, stream=io.StringIO())
    started = time.perf_counter()
    for step in range(1, 10_001):
        progress.row(step_row(step))
    assert (time.perf_counter() - started) / 10_000 < 200e-6  # 5 µs here; a step takes 17 ms at the least
    assert len(progress._marks) < 200


def test_loss_is_smoothed_and_survives_nan() -> None:
    stream = io.StringIO()
    progress = TrainingProgress(100, stream=stream)
    for step, loss in enumerate([4.0, 2.0, math.nan, 3.0], start=1):
        progress.row(step_row(step, loss))
    assert "loss 3.000" in progress.fields()
    progress.row(step_row(5, 2.0))
    assert "loss 2.900" in progress.fields()


def test_bytes(terminal: Terminal) -> None:
    clock = Clock()
    progress = BytesProgress("reading", stream=terminal.stream, clock=clock)
    for done in range(0, 50_000_001, 5_000_000):
        clock.now += 0.2
        progress(done, 99_000_000)
    assert re.fullmatch(r"reading 50\.0 of 99\.0 MB  50 %  2 s left  22\.\d MB/s", terminal.screen()[-1])


def test_an_empty_total_is_no_division_by_zero() -> None:
    with BytesProgress("reading", stream=io.StringIO()) as progress:
        progress(0, 0)


@pytest.mark.parametrize("how", ["closed", "pipe without reader", "full"])
def test_a_stream_that_is_gone_never_stops_the_work(how: str) -> None:
    stream: TextIO
    if how == "closed":
        stream = io.StringIO()
        progress = TrainingProgress(10, stream=stream)
        stream.close()
    elif how == "full":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
        progress = TrainingProgress(10, stream=stream)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
        progress = TrainingProgress(10, stream=stream)
    with progress:
        for step in range(1, 11):
            progress.row({"step": step, "validation_loss": 3.0})
            progress.say("x")
    try:
        stream.close()
    except OSError:
        assert how != "closed"


def test_an_ascii_terminal_gets_question_marks() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    TrainingProgress(3, stream=stream).say("naïve 日本")
    assert buffer.getvalue() == b"na?ve ??\n"


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    assert printable("\udcff") == "�", "a byte of a file's name that is not UTF-8"
    assert printable("a\x1b[2Jb\rc\x07\n\td\x9b31m") == "a�[2Jb�c�\n\td�31m"


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59, 59.7, 130, 3_900, 200_000)] == [
        "0 s", "59 s", "1 min 00 s", "2 min 10 s", "1 h 05 min", "2 d 7 h",
    ]  # fmt: skip


def test_standard_error_is_the_default() -> None:
    assert Progress(1)._stream is sys.stderr
