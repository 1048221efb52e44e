"""Several runs on one page: what `linnet runs DIR --html FILE` writes.

What   The table that the terminal shows, all curves on top of each other, and what each model wrote last, side by side.
Why    Which learning rate was better is seen in two curves, not in two tables.
How    The parts of a run's own page (`linnet.track.report.contents`, `curves`) for many runs. No links, as
       the page may go elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from linnet.track.metrics import Row
from linnet.track.report.contents import evaluations_of, is_continued
from linnet.track.report.curves import comparison_figures
from linnet.track.report.page import Page
from linnet.track.runs import RunSummary
from linnet.track.table import WORDS, columns_of


def write_comparison(path: Path, loaded: Sequence[tuple[RunSummary, list[Row]]]) -> None:
    """Write the page of runs, as `load_run` gave them, to `path`.

    Raises:
        DiskError, OSError: it cannot be written.
    """
    newest = []
    for run, _ in loaded:
        evaluations, _ = evaluations_of(Path(run.path), run)
        if evaluations:
            newest.append((run, evaluations[0], is_continued(Path(run.path))))
    runs = [run for run, _ in loaded]
    Page("comparison.html.j2").write(
        path,
        figures=comparison_figures({run.name: rows for run, rows in loaded}),
        runs=runs,
        columns=columns_of(runs),
        words=WORDS,
        newest=newest,
        drawn=time.strftime("%Y-%m-%d %H:%M"),
    )
