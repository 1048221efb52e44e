"""`linnet runs`: the runs of a folder side by side.

What   A table on the terminal, or JSON; on request a picture or a page with all curves.
Why    One look must tell which of ten runs was the good one.
How    From the run folders' files alone. A picture or a page is drawn by modules that are imported only then.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from linnet.errors import LinnetError
from linnet.track.runs import find_runs, load_run
from linnet.track.table import print_table


def show(folder: Path, *, plot: Path | None = None, html: Path | None = None, as_json: bool = False) -> None:
    """Print the runs in `folder` to stdout, as a table or as JSON, and draw their curves into `plot` and `html`.

    Raises LinnetError where there are no runs, or nothing to draw.
    """
    for path in (plot, html):
        if path is not None and not path.absolute().parent.is_dir():
            raise LinnetError(f"There is no folder {path.absolute().parent}; make it, or name another file.")
        if path is not None and path.is_dir():
            raise LinnetError(
                f"{path} is a folder; name a file, such as {path / 'runs'}{'.png' if path is plot else '.html'}."
            )
    loaded = [load_run(path) for path in find_runs(folder)]
    runs = [run for run, _ in loaded]
    if as_json:
        print(json.dumps({"runs": [asdict(run) for run in runs]}, indent=2, allow_nan=False))
    else:
        print_table(runs)
    if plot is not None:
        from linnet.track.plots import plot_runs

        if plot_runs({run.name: rows for run, rows in loaded}, plot) is None:
            raise LinnetError(f"There is nothing to draw: no run in {folder} has logged a step yet.")
        print(f"The curves are in {plot}", file=sys.stderr)
    if html is not None:
        from linnet.track.report.comparison import write_comparison

        write_comparison(html, loaded)
        print(f"The page is {html}", file=sys.stderr)
