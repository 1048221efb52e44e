"""The table of runs that `linnet runs` prints.

What: a row for each run, as many columns as the terminal holds.
Why:  "which of these was the good one?" must be answered without opening ten files.
How:  from the summaries (`linnet.track.runs`).
"""

import sys
from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from linnet.track.progress import printable
from linnet.track.runs import RunSummary

DROPPED_FIRST = ("recipe", "model/", "at step", "from", "time", "tokens/s")  # where the terminal is narrow
GAP = 2  # spaces between columns
COLOURS = {"running": "green", "diverged": "red", "stopped": "yellow", "new": "yellow"}
WORDS = ("run", "recipe", "from", "state")  # columns of text; the others hold numbers


def print_table(runs: Sequence[RunSummary], *, console: Console | None = None) -> None:
    """The runs as a table that fits the terminal, then what is wrong with them.

    A narrow terminal gets fewer columns, not narrower ones: half a number is worse than none.
    """
    if console is None:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    columns = columns_of(runs)
    for header in DROPPED_FIRST:
        if sum(_width(name, cells) + GAP for name, cells in columns.items()) - GAP <= console.width:
            break
        columns.pop(header, None)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in columns:
        justify: Literal["left", "right"] = "left" if name in WORDS else "right"
        table.add_column(name, justify=justify, no_wrap=name != "run", overflow="fold")
    for row, run in enumerate(runs):
        cells = [Text(cells[row]) for cells in columns.values()]
        cells[list(columns).index("state")].stylize(COLOURS.get(run.state, ""))
        table.add_row(*cells)
    console.print(table)
    for run in runs:
        for problem in run.problems:
            console.print(Text(printable(f"{run.name}: {problem}"), style="red"))


def columns_of(runs: Sequence[RunSummary]) -> dict[str, list[str]]:
    """Header -> a cell for each run. Columns that would be empty or say what another says are left out."""
    columns: dict[str, list[str]] = {
        "run": [printable(run.name) for run in runs],
        "recipe": [printable(run.recipe or "") for run in runs],
        "from": [printable(run.parent or "") for run in runs],
        "state": [run.state for run in runs],
        "steps": [
            f"{run.step:,}" if run.steps in (None, run.step) else f"{run.step:,}/{run.steps:,}"
            for run in runs
        ],
        "loss": [_text(run.training_loss, ".3f") for run in runs],
        "held-out": [_text(run.validation_loss, ".3f") for run in runs],
        "at step": [_text(run.best_step, ",") for run in runs],
        "tokens/s": [_text(run.tokens_per_s, ",.0f") for run in runs],
        "time": [clock(run.time_s) if run.time_s else "" for run in runs],
        "size": ["" if run.parameters is None else short_count(run.parameters) for run in runs],
        "model/": ["" if run.model_bytes is None else f"{run.model_bytes / 1e6:,.1f} MB" for run in runs],
    }
    if columns["recipe"] == columns["run"]:
        del columns["recipe"]
    return {name: cells for name, cells in columns.items() if any(cells)}


def _width(header: str, cells: Sequence[str]) -> int:
    return max(cell_len(text) for text in (header, *cells))


def clock(seconds: float) -> str:
    """3910.2 -> '1:05:10'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def short_count(number: int) -> str:
    """124439808 -> '124M'."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return str(number)
