"""report.html: a run as a page that one can look at, also while it trains.

What   `write_report` draws the page of a run folder; `LiveReport` does it again and again beside a training.
Why    Numbers in a file tell little. Curves that zoom, samples as they improve, and what was chosen and why, on one
       page that opens anywhere, tell whether a run goes well.
How    From the run folder's files alone, so that a page can be drawn of any run at any time. Reading 10,000 rows and
       drawing takes about 0.1 s, so the training counts: a redraw waits until the last one's time is less
       than 1 % of the time since, on a slow disk, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from linnet.track.report.contents import contents_of
from linnet.track.report.curves import run_figures
from linnet.track.report.page import Page
from linnet.track.runs import load_run

TEMPLATE = "report.html.j2"
SHARE = 0.01  # of the time that redrawing may take


def write_report(root: Path, *, running: bool | None = None) -> None:
    """Draw report.html of the run `root` anew. `running`: whether it trains; None looks at its lock.

    Raises:
        DiskError: it cannot be written.
    """
    _write(root, page=Page(TEMPLATE), running=running)


class LiveReport:
    """report.html of a run that this process is training. `clock`: seconds from any origin; a test gives its own."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._page = Page(TEMPLATE)
        self._clock = clock
        self._due = -math.inf  # when it may be drawn again

    def offer(self) -> None:
        """Something new can be shown: redraw, unless the last redraw cost more than 1 % of the time since."""
        started = self._clock()
        if started < self._due:
            return
        _write(self._root, page=self._page, running=True)
        ended = self._clock()
        self._due = ended + (ended - started) / SHARE

    def close(self) -> None:
        """The training has ended, one way or the other: draw its last state."""
        write_report(self._root, running=False)


def _write(root: Path, *, page: Page, running: bool | None) -> None:
    run, rows = load_run(root, running=running)
    page.write(
        root / "report.html",
        figures=run_figures(rows),
        contents=contents_of(root, run),
        drawn=time.strftime("%Y-%m-%d %H:%M"),
    )
