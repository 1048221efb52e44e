"""The curves of a page: figures for plotly, made of the rows of metrics.jsonl.

What   `run_figures` for one run, `comparison_figures` for several on top of each other. Loss, learning rate, gradient
       norm, tokens/s and memory, each against steps, tokens and time.
Why    Plotly draws, zooms and says what lies under the pointer. Only what is drawn has to be said, as JSON.
How    A line is thinned out to 2,000 points, its spikes kept: a page of 100,000 steps is as small as one of 2,000.
       Numbers travel as base64 of their bytes, the form that plotly.js reads without parsing; NaN makes a gap.
       Colours are of middle lightness, readable on white and on black; all other colours are set by figures.js.

The document: {"axes": [{key, name, title, tickformat, hoverformat, range, dtick}], "figures": [{id, title, note,
entries, data, layout, x}]}. `data` and `layout` are plotly's; `x` holds for each axis the places of each trace, put in
when the axis is chosen; `entries` counts the lines of the legend.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnet.track.metrics import Row
from linnet.track.plots import MOST_POINTS, Floats, moving_mean, thin_out

Trace = dict[str, Any]

EACH_STEP, TRAINING, HELD_OUT = "#56B4E9", "#3B8FD1", "#E0662C"
COLOURS = ["#3B8FD1", "#E0662C", "#1FA67A", "#CC79A7", "#D99A00", "#8A7FD6", "#8A8F98"]
DASHES = ["solid", "dash", "dot", "dashdot"]
SMOOTH_FROM = 20  # steps; fewer are drawn as they are
LOGARITHMIC_FROM = 2.0  # largest / smallest loss: from scratch it falls from 10 to 3 in the first percent
_AXES = {  # key: name, title, format at the axis, format under the pointer
    "step": ("steps", "training step", ",~f", ",~f"),
    "tokens": ("tokens", "tokens", "~s", ",.0f"),
    "time": ("time", "training time ({unit})", ",~f", ",.2~f"),
}
MOST_MARKED = 40  # evaluations that are drawn as dots


@dataclass(frozen=True)
class Measure:
    """A figure beside the loss."""

    key: str
    title: str
    note: str = ""
    smooth: bool = False
    """Each step is mostly noise: a moving mean on top."""
    hover: str = ".3~f"
    """d3's format of a value under the pointer."""
    tickformat: str = ""
    """d3's format at the axis; empty: plotly's choice."""
    from_zero: bool = True


MEASURES = (
    Measure("learning_rate", "Learning rate", hover=".3~g", tickformat="~g"),
    Measure("grad_norm", "Gradient norm", note="unclipped", smooth=True, from_zero=False),
    Measure("tokens_per_s", "Tokens per second", smooth=True, hover=",.0f", tickformat="~s"),
    Measure("memory_gb", "Memory", note="GB, peak", tickformat="~f"),
)


@dataclass(frozen=True)
class Columns:
    """The rows of a run as arrays. What a row lacks or is not finite is NaN."""

    steps: Mapping[str, Floats]
    """For each logged step: step, tokens, time and every measure."""
    evaluations: Mapping[str, Floats]
    """For each evaluation: step, tokens, time, validation_loss."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Columns:
        """From rows of metrics.jsonl. An evaluation's tokens are those of the steps around it."""
        trained = [row for row in rows if "loss" in row and isinstance(row.get("step"), int)]
        evaluated = [row for row in rows if "validation_loss" in row and isinstance(row.get("step"), int)]
        names = {"step": "step", "tokens": "tokens", "time": "time_s", "loss": "loss"}
        names |= {measure.key: measure.key for measure in MEASURES}
        steps = {name: _numbers(trained, key) for name, key in names.items()}
        names = {"step": "step", "time": "time_s", "validation_loss": "validation_loss"}
        evaluations = {name: _numbers(evaluated, key) for name, key in names.items()}
        known = np.isfinite(steps["tokens"])
        evaluations["tokens"] = np.interp(
            evaluations["step"], [0, *steps["step"][known]], [0, *steps["tokens"][known]]
        )
        return cls(steps, evaluations)

    def longest(self, key: str) -> float:
        """The largest finite number of an axis; 0 where there is none."""
        both = np.concatenate([self.steps[key], self.evaluations[key]])
        return float(np.max(both, initial=0.0, where=np.isfinite(both)))

    @property
    def best(self) -> int | None:
        """Index of the lowest validation loss; the model before the first step counts only where there is no other."""
        losses = self.evaluations["validation_loss"].copy()
        trained = np.isfinite(losses) & (self.evaluations["step"] > 0)
        if trained.any():
            losses[~trained] = math.nan
        return int(np.nanargmin(losses)) if np.isfinite(losses).any() else None


def run_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """The document (see above) of one run; without figures where nothing is logged yet."""
    columns = Columns.of(rows)
    axes = _axes([columns])
    lines = _Lines(axes, most=MOST_POINTS)
    loss = columns.steps["loss"]
    smooth = len(loss) >= SMOOTH_FROM
    lines.add(columns.steps, loss, name="each step" if smooth else "training", line=_faint(smooth))
    if smooth:
        lines.add(
            columns.steps,
            smoothed(loss),
            name="training, moving mean",
            line={"color": TRAINING, "width": 2.2},
        )
    _add_held_out(lines, columns, name="held out", colour=HELD_OUT)
    figures = [_loss_figure(lines, [columns])]
    for measure in MEASURES:
        lines = _Lines(axes, most=MOST_POINTS)
        values = columns.steps[measure.key]
        smooth = measure.smooth and len(values) >= SMOOTH_FROM
        lines.add(columns.steps, values, name="each step" if smooth else measure.title, line=_faint(smooth))
        if smooth:
            lines.add(
                columns.steps, smoothed(values), name="moving mean", line={"color": TRAINING, "width": 2}
            )
        figures.append(_figure(measure, lines))
    return _document(axes, figures)


def comparison_figures(runs: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The document of several runs, name -> rows, one colour for each."""
    tables = {name: Columns.of(rows) for name, rows in runs.items()}
    axes = _axes(list(tables.values()))
    most = max(200, 4 * MOST_POINTS // max(1, len(tables)))
    styles = {
        name: {"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i // len(COLOURS) % len(DASHES)]}
        for i, name in enumerate(tables)
    }
    lines = _Lines(axes, most=most)
    for name, columns in tables.items():
        colour, dash = styles[name]["color"], styles[name]["dash"]
        group = {"name": _plain(name), "legendgroup": name}
        line = {"color": colour, "dash": dash, "width": 1.2}
        lines.add(
            columns.steps,
            smoothed(columns.steps["loss"]),
            line=line,
            opacity=0.75,
            showlegend=not len(columns.evaluations["step"]),
            **group,
        )
        _add_held_out(lines, columns, colour=colour, dash=dash, **group)
    figures = [_loss_figure(lines, list(tables.values()))]
    for measure in MEASURES:
        lines = _Lines(axes, most=most)
        for name, columns in tables.items():
            values = columns.steps[measure.key]
            line = {**styles[name], "width": 1.8}
            lines.add(
                columns.steps, smoothed(values) if measure.smooth else values, name=_plain(name), line=line
            )
        figures.append(_figure(measure, lines, legend=False))
    return _document(axes, figures)


class _Lines:
    """Traces of one figure, and their places on each axis."""

    def __init__(self, axes: Sequence[Mapping[str, Any]], *, most: int) -> None:
        self._scales = {str(axis["key"]): float(axis["scale"]) for axis in axes}
        self._most = most
        self.traces: list[Trace] = []
        self.x: dict[str, list[Any]] = {key: [] for key in self._scales}
        self.values: list[Floats] = []

    def add(self, table: Mapping[str, Floats], values: Floats, **style: Any) -> None:
        """A line of `values` at the places in `table`; nothing where no value is finite."""
        if not np.isfinite(values).any():
            return
        keep = thin(values, self._most)
        for key, scale in self._scales.items():
            self.x[key].append(_encoded(table[key][keep] / scale))
        trace = {"type": "scatter", "mode": "lines", "connectgaps": False, "y": _encoded(values[keep])}
        self.traces.append(trace | style)
        self.values.append(values[np.isfinite(values)])


def _add_held_out(
    lines: _Lines, columns: Columns, *, name: str, colour: str, dash: str = "solid", **group: Any
) -> None:
    """The held-out losses and a ring around the best."""
    table, losses = columns.evaluations, columns.evaluations["validation_loss"]
    marked = len(losses) <= MOST_MARKED
    style: Trace = {"line": {"color": colour, "width": 2, "dash": dash}}
    if marked:
        style |= {"mode": "lines+markers", "marker": {"size": 6, "color": colour}}
    lines.add(table, losses, name=name, **style, **group)
    if (best := columns.best) is None:
        return
    at = {key: values[best : best + 1] for key, values in table.items()}
    ring = {"size": 15, "color": colour, "symbol": "circle-open", "line": {"width": 2.2}}
    step, loss = int(at["step"][0]), float(losses[best])
    lines.add(
        at,
        losses[best : best + 1],
        name=name if group else f"best: {loss:.3f} at step {step:,}",
        mode="markers",
        marker=ring,
        hoverinfo="skip",
        cliponaxis=False,
        **(group | {"showlegend": False} if group else {}),
    )


def _loss_figure(lines: _Lines, tables: Sequence[Columns]) -> dict[str, Any]:
    values = np.concatenate([np.zeros(0), *lines.values])
    logarithmic = bool(len(values)) and values.min() > 0 and values.max() > LOGARITHMIC_FROM * values.min()
    measure = Measure(
        "loss",
        "Loss",
        note="nats per token" + (", log scale" if logarithmic else ""),
        hover=".4f",
        from_zero=False,
    )
    return _figure(measure, lines, logarithmic=logarithmic)


def _figure(
    measure: Measure, lines: _Lines, *, legend: bool = True, logarithmic: bool = False
) -> dict[str, Any]:
    """One figure of the document."""
    axis: dict[str, Any] = {"hoverformat": measure.hover, "automargin": True, "nticks": 7}
    if measure.tickformat:
        axis["tickformat"] = measure.tickformat
    axis["rangemode"] = "tozero" if measure.from_zero else "nonnegative"
    if logarithmic:
        axis |= {"type": "log", "tickformat": "~g", "minorloglabels": "complete"}
    legend = legend and len(lines.traces) > 1
    layout = {
        "yaxis": axis,
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hovermode": "x unified",
        "margin": {"l": 48, "r": 16, "t": 40 if legend else 10, "b": 44},
    }
    return {
        "id": measure.key,
        "title": measure.title,
        "note": measure.note,
        "entries": sum(trace.get("showlegend", True) for trace in lines.traces) if legend else 0,
        "data": lines.traces,
        "layout": layout,
        "x": lines.x,
    }


def _document(axes: Sequence[dict[str, Any]], figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"axes": list(axes), "figures": [figure for figure in figures if figure["data"]]}


def _axes(tables: Sequence[Columns]) -> list[dict[str, Any]]:
    """What the curves can be drawn against; time in the unit that fits the longest run."""
    longest = {key: max((table.longest(key) for table in tables), default=0.0) for key in _AXES}
    axes = []
    for key, (name, title, tickformat, hoverformat) in _AXES.items():
        unit, scale = _time_unit(longest[key]) if key == "time" else ("", 1.0)
        if key == "step" or longest[key]:
            stop = max(longest[key], 1.0) / scale
            axes.append(
                {
                    "key": key,
                    "name": name,
                    "title": title.format(unit=unit),
                    "tickformat": tickformat,
                    "hoverformat": hoverformat,
                    "scale": scale,
                    "range": [-0.01 * stop, 1.02 * stop],
                    "dtick": 1 if stop <= 8 and key == "step" else None,
                }
            )
    return axes


def _time_unit(seconds: float) -> tuple[str, float]:
    """Its name and its length in seconds: at least two of it."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return unit, length
    return "s", 1.0


def _numbers(rows: Sequence[Row], key: str) -> Floats:
    values = [row.get(key) for row in rows]
    try:
        array = np.array(values, dtype=np.float64)  # None becomes NaN
        if array.ndim > 1:
            raise ValueError("lists are no numbers")
    except (TypeError, ValueError, OverflowError):
        numbers = [value if isinstance(value, float) or _is_small(value) else math.nan for value in values]
        array = np.array(numbers, dtype=np.float64)
    array[~np.isfinite(array)] = math.nan
    return array


def _is_small(value: object) -> bool:
    """Whether it is a whole number that a float can hold."""
    return isinstance(value, int) and abs(value) < 2**1000


def smoothed(values: Floats) -> Floats:
    """The moving mean over those that are finite; the others stay gaps."""
    finite = np.isfinite(values)
    mean = values.copy()
    mean[finite] = moving_mean(values[finite], half=max(2, int(finite.sum()) // 50))
    return mean


def thin(values: Floats, most: int) -> Any:
    """Which of them are drawn: those of `thin_out`, and the first of each gap, as far as they fit."""
    finite = np.flatnonzero(np.isfinite(values))
    kept, _ = thin_out(finite.astype(np.float64), values[finite], most=most)
    missing = ~np.isfinite(values)
    gaps = np.flatnonzero(missing & ~np.concatenate([[False], missing[:-1]]))
    return np.union1d(kept.astype(np.int64), gaps[:: 1 + len(gaps) // most])


def _encoded(values: Floats) -> dict[str, str]:
    """Numbers as plotly.js takes them: little-endian float64 in base64."""
    return {"dtype": "f8", "bdata": base64.b64encode(values.astype("<f8").tobytes()).decode()}


def _faint(smooth: bool) -> dict[str, Any]:
    """The line of each step: in the background where a mean is drawn on top."""
    return {"color": EACH_STEP, "width": 0.9} if smooth else {"color": TRAINING, "width": 2.2}


def _plain(name: str) -> str:
    """A name that plotly shows as it is: it knows some HTML."""
    return name.replace("&", "&amp;").replace("<", "&lt;")
