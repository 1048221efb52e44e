"""Scores side by side, for people: a line for each measure, a column for each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from linnet.track.progress import printable

Report = Mapping[str, Any]

LINES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "data": ("data", str),
    "loss": ("loss (nats per learned token)", "{:.4f}".format),
    "perplexity": ("perplexity", "{:,.2f}".format),
    "bits_per_byte": ("bits per byte", "{:.4f}".format),
    "tokens": ("tokens", "{:,}".format),
    "learned_tokens": ("learned tokens", "{:,}".format),
    "ended_share": ("answers that end by themselves", "{:.1%}".format),
    "exact_match": ("right final answers", "{:.1%}".format),
    "rouge1": ("ROUGE-1", "{:.4f}".format),
    "rouge2": ("ROUGE-2", "{:.4f}".format),
    "rougeL": ("ROUGE-L", "{:.4f}".format),
    "answers": ("of answers", "{:,}".format),
}


def print_table(reports: Sequence[Report], *, width: int | None = None) -> None:
    """Print to standard output, without the lines that no model has. `width` in characters; None: the terminal's."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for report in reports:
        table.add_column(Text(printable(str(report["model"]))), justify="right", overflow="fold")
    for key, (title, show) in LINES.items():
        values = [report.get(key) for report in reports]
        if any(value is not None for value in values):
            cells = ["-" if value is None else printable(show(value)) for value in values]
            table.add_row(title, *map(Text, cells))
    Console(width=width, highlight=False).print(table)
