"""The live progress line: how far, how good, how fast, how long still.

What: one line that is redrawn in a terminal; in a log file or a notebook, plain lines now and then.
Why:  a training takes minutes or days, and a log full of carriage returns is unreadable.
How:  whoever works calls `row` (or `update`) as often as it likes; drawing is limited to ten times a second,
      since it runs in the training's own thread (20 microseconds for a call that draws nothing). Time left
      comes from the newer half of the time since the first step of this start: what came before it (a first
      evaluation, a compilation, the steps of an earlier start) says nothing about the rest, and a machine that
      became busy is noticed. A closed pipe or terminal never stops the work.
"""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

# Unicode's Cc, but for tab and newline; and Cs, which is what a name that is not UTF-8 becomes
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
DRAWS_PER_S = 10
FIRST_LINES_S = 5.0  # in a log: not more often than this
SLOWEST_LINES_S = 300.0  # and, however long it runs, not more seldom than this
SMOOTHING = 0.9  # of loss and tokens/s on the line: about the last ten steps


class Progress:
    """A line about `done` of `total`; a context manager that leaves the last state standing.

    Args:
        total: what 100 % is.
        done: what was there at the start (a resumed run's step); not counted for the time left.
        stream: standard error if not given.
        clock: seconds from any origin; a test gives its own.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.done = done
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._started = self._drawn = clock()
        self._done_before = done
        self._first: float | None = None  # when the first step was done
        self._marks: deque[tuple[float, int]] = deque([(self._started, done)])
        self._shown = ""  # what stands on the live line
        self._pending = False
        self._broken = False

    def fields(self) -> list[str]:
        """The parts of the line, the most important first; a narrow terminal drops the last ones."""
        return [f"{self.done:,}/{self.total:,}", *self.share_and_time()]

    def share_and_time(self) -> list[str]:
        """["45 %", "11 s left"], as far as they are known."""
        share = [f"{100 * self.done // self.total} %"] if self.total else []
        left = self.seconds_left()
        return share if left is None else [*share, f"{duration(left)} left"]

    def seconds_left(self) -> float | None:
        """Seconds to the end at the speed of late; None before anything is known and at the end."""
        now, (then, before) = self._clock(), self._marks[0]
        if self.done <= before or now <= then or self.done >= self.total:
            return None
        return (self.total - self.done) * (now - then) / (self.done - before)

    def update(self, done: int, *, always: bool = False) -> None:
        """Say how much is done. `always` leaves a line of its own behind, in a log and in a terminal."""
        now = self._clock()
        self.done = done
        self._mark(now)
        self._pending = True
        if always:
            self._line(now)
        elif self._live:
            if now - self._drawn >= 1 / DRAWS_PER_S:
                self._draw(now)
        elif now - self._drawn >= min(SLOWEST_LINES_S, max(FIRST_LINES_S, (now - self._started) / 20)):
            self._line(now)

    def say(self, text: str) -> None:
        """Print lines above the live one."""
        self._write(self._erase() + printable(text) + "\n")
        if self._live and self._pending:
            self._draw(self._clock())

    def close(self) -> None:
        """Leave the last state as a line of its own."""
        if self._pending:
            self._line(self._clock())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mark(self, now: float) -> None:
        """Remember points of (time, done) that cover the newer half of the time since the first step's end."""
        if self._first is None:
            self._marks = deque([(now, self.done)])
            if self.done > self._done_before:
                self._first = now
            return
        elapsed = now - self._first
        if now - self._marks[-1][0] >= elapsed / 64:
            self._marks.append((now, self.done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - elapsed / 2:
            self._marks.popleft()

    def _draw(self, now: float) -> None:
        line = self._text()
        self._write("\r" + line.ljust(len(self._shown)))
        self._shown = line
        self._drawn = now

    def _line(self, now: float) -> None:
        self._write(self._erase() + self._text() + "\n")
        self._drawn = now
        self._pending = False

    def _erase(self) -> str:
        """What clears the live line; spaces, so that no escape code is ever needed."""
        erase = "\r" + " " * len(self._shown) + "\r" if self._shown else ""
        self._shown = ""
        return erase

    def _text(self) -> str:
        fields = self.fields()
        width = self._columns() - 1 if self._live else sys.maxsize  # a wrapped line could not be erased
        while len(fields) > 1 and len("  ".join(fields)) > width:
            fields.pop()
        return "  ".join(fields)[:width]

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self._broken:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, errors="replace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):  # closed by the reader (`| head`) or with the terminal
            self._broken = True


class TrainingProgress(Progress):
    """The line of a training: `row` takes each row that goes to metrics.jsonl.

    `step 1,240/5,000  loss 3.214  validation 3.301  12,345 tokens/s  24 %  2 min 10 s left`
    """

    _loss: float | None = None
    _speed: float | None = None
    _validation: float | None = None

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a row; one of an evaluation always leaves a line behind."""
        if "validation_loss" in row:
            self._validation = row["validation_loss"]
        if "loss" in row:
            self._loss = _smooth(self._loss, row["loss"])
            self._speed = _smooth(self._speed, row["tokens_per_s"])
        self.update(row["step"], always="validation_loss" in row)

    def fields(self) -> list[str]:
        parts = [f"step {self.done:,}/{self.total:,}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.3f}")
        if self._validation is not None:
            parts.append(f"validation {self._validation:.3f}")
        ending = self.share_and_time()
        if ending and ending[-1].endswith("left"):
            parts.append(ending.pop())
        if self._speed is not None:
            parts.append(f"{self._speed:,.0f} tokens/s")
        return [*parts, *ending]


class BytesProgress(Progress):
    """The line of reading files; `prepare` calls it with (bytes done, bytes in all).

    `reading 12.3 of 99.0 MB  12 %  11 s left  7.9 MB/s`
    """

    def __init__(
        self, what: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        super().__init__(0, stream=stream, clock=clock)
        self._what = what

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        self.update(done)

    def fields(self) -> list[str]:
        seconds = self._clock() - self._started
        speed = [f"{self.done / seconds / 1e6:.1f} MB/s"] if seconds > 0 else []
        sizes = f"{self._what} {self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB"
        return [sizes, *self.share_and_time(), *speed]


def duration(seconds: float) -> str:
    """A time for people, in at most two units.

    >>> [duration(s) for s in (0.4, 59, 130, 3_900, 200_000)]
    ['0 s', '59 s', '2 min 10 s', '1 h 05 min', '2 d 7 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def printable(text: str) -> str:
    """The text without control characters, line ends and tabs aside: a model may write escape codes that
    recolour or rename a terminal."""
    return _CONTROL.sub("�", text)


def _smooth(mean: float | None, value: float) -> float:
    """A moving mean that begins with the first value and starts anew after one that is not finite."""
    if mean is None or not abs(mean) < float("inf"):
        return value
    return SMOOTHING * mean + (1 - SMOOTHING) * value
