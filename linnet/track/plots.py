"""The curves of a run as a picture: `loss.png`, and several runs on one.

What: the training loss of each step (faint), its moving mean, the validation losses, the best one marked.
Why:  one look says whether it learns, whether it overfits and where the kept model lies.
How:  matplotlib, drawn with the Agg backend on a Figure of our own: no window, no pyplot, no global state.
      It is imported when a picture is drawn (0.4 s), so that no other verb pays for it.

The vertical axis is logarithmic where the losses differ more than twofold: from scratch a loss falls from
about 10 to 3 in the first percent of the run, and the rest, which matters, would be a flat line.
"""

import io
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from linnet.files import write_file
from linnet.track.metrics import Row, read_metrics
from linnet.track.progress import printable
from linnet.track.runs import own_path

Floats = NDArray[np.float64]

# Okabe and Ito's colours: they stay apart for the colour-blind.
TRAINING, VALIDATION = "#56B4E9", "#D55E00"
SMOOTHED = "#0072B2"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
MOST_POINTS = 2_000  # for each line; the picture is 1,200 pixels wide
NICE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)  # ticks of the logarithmic axis, in every decade


@dataclass(frozen=True)
class Curve:
    """What of a run's rows is drawn. All arrays are finite float64."""

    steps: Floats
    losses: Floats
    validation_steps: Floats
    validation_losses: Floats

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Self:
        """From rows of metrics.jsonl; numbers that are not finite are left out."""
        training, validation = _points(rows, "loss"), _points(rows, "validation_loss")
        return cls(training[:, 0], training[:, 1], validation[:, 0], validation[:, 1])

    @property
    def empty(self) -> bool:
        return not (len(self.steps) or len(self.validation_steps))

    @property
    def best(self) -> tuple[float, float] | None:
        """(step, loss) of the lowest validation loss, the first of equal ones.

        As in the loop, the model before the first step counts only where there is no other.
        """
        points = list(zip(self.validation_losses.tolist(), self.validation_steps.tolist(), strict=True))
        if not points:
            return None
        loss, step = min([point for point in points if point[1] > 0] or points)
        return step, loss


def plot_run(folder: Path) -> Path | None:
    """Draw a run folder's metrics.jsonl into its loss.png. None, and no file, where nothing is logged yet.

    Raises DiskError where the picture cannot be written. About 0.7 s in a fresh process, 0.2 s after.
    """
    curve = Curve.of(read_metrics(folder / "metrics.jsonl"))
    if curve.empty:
        return None
    with _figure(folder / "loss.png") as axes:
        legend = _draw_single(axes, curve)
        _finish(axes, [curve], legend, title=printable(own_path(folder).name))
    return folder / "loss.png"


def plot_runs(runs: Mapping[str, Sequence[Row]], path: Path) -> Path | None:
    """Draw several runs' curves, name -> rows, on one picture. None where no run has anything to draw."""
    curves = {name: Curve.of(rows) for name, rows in runs.items()}
    curves = {name: curve for name, curve in curves.items() if not curve.empty}
    if not curves:
        return None
    with _figure(path) as axes:
        legend = _draw_several(axes, curves)
        _finish(
            axes, list(curves.values()), legend, title="thin: training; thick: validation, the best ringed"
        )
    return path


def moving_mean(values: Floats, *, half: int) -> Floats:
    """The mean over up to `half` values on either side of each.

    At the left the window shrinks to stay symmetric, because a loss falls steeply there and a lopsided mean
    would lie below the curve; at the right, where it is flat, only the missing side is left out.

    >>> moving_mean(np.array([8.0, 4.0, 3.0, 3.0]), half=1).tolist()
    [8.0, 5.0, 3.3333333333333335, 3.0]
    """
    n = len(values)
    index = np.arange(n)
    reach = np.minimum(index, half)
    start, stop = index - reach, np.minimum(index + reach, n - 1) + 1
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((sums[stop] - sums[start]) / (stop - start), dtype=np.float64)


def thin_out(steps: Floats, values: Floats, *, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """At most `most` points of the line, with the lowest and the highest of each stretch: spikes stay."""
    if len(values) <= most:
        return steps, values
    stretch = math.ceil(len(values) / (most // 2))
    whole = len(values) // stretch
    parts = values[: whole * stretch].reshape(whole, stretch)
    starts = np.arange(whole) * stretch
    index = [starts + parts.argmin(axis=1), starts + parts.argmax(axis=1)]
    if len(rest := values[whole * stretch :]):
        index += [whole * stretch + np.array([rest.argmin(), rest.argmax()])]
    keep = np.unique(np.concatenate(index))
    return steps[keep], values[keep]


def _points(rows: Sequence[Row], key: str) -> Floats:
    """[n, 2] array of (step, value) in the order of the rows."""
    points = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), int | float) and isinstance(row.get("step"), int)
    ]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    finite: Floats = array[np.isfinite(array).all(axis=1)]
    return finite


def _draw_single(axes: Any, curve: Curve) -> list[tuple[Any, str]]:
    legend = []
    if len(curve.steps):
        steps, losses = thin_out(curve.steps, curve.losses)
        smooth = len(curve.steps) >= 20
        (faint,) = axes.plot(
            steps, losses, color=TRAINING, linewidth=0.9 if smooth else 2.2, alpha=0.55 if smooth else 1
        )
        if smooth:
            mean = moving_mean(curve.losses, half=max(2, len(curve.losses) // 50))
            (line,) = axes.plot(*thin_out(curve.steps, mean), color=SMOOTHED, linewidth=2.2)
        legend.append((line if smooth else faint, "training"))
    if len(curve.validation_steps):
        (points,) = axes.plot(
            curve.validation_steps,
            curve.validation_losses,
            color=VALIDATION,
            linewidth=1.6,
            marker="o",
            markersize=_marker_size(curve),
        )
        legend.append((points, "validation"))
    if curve.best is not None:
        step, loss = curve.best
        (ring,) = axes.plot(
            [step], [loss], color=VALIDATION, marker="o", markersize=15, fillstyle="none", linestyle="none",
            markeredgewidth=2.2, clip_on=False, zorder=5,
        )  # fmt: skip
        legend.append((ring, f"best: {loss:.3f} at step {step:,.0f}"))
    return legend


def _draw_several(axes: Any, curves: Mapping[str, Curve]) -> list[tuple[Any, str]]:
    legend = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        dashes = DASHES[number // len(COLOURS) % len(DASHES)]
        if len(curve.steps):
            mean = moving_mean(curve.losses, half=max(2, len(curve.losses) // 50))
            (line,) = axes.plot(
                *thin_out(curve.steps, mean), color=colour, linestyle=dashes, linewidth=1.0, alpha=0.7
            )
        if len(curve.validation_steps):
            (line,) = axes.plot(
                curve.validation_steps,
                curve.validation_losses,
                color=colour,
                linestyle=dashes,
                linewidth=2.0,
                marker="o",
                markersize=_marker_size(curve),
            )
        if curve.best is not None:
            axes.plot(
                *([value] for value in curve.best), color=colour, marker="o", markersize=13,
                fillstyle="none", linestyle="none", markeredgewidth=2, clip_on=False, zorder=5,
            )  # fmt: skip
        short = printable(name if len(name) <= 30 else "…" + name[-29:])
        legend.append((line, short if curve.best is None else f"{short}: {curve.best[1]:.3f}"))
    return legend


def _marker_size(curve: Curve) -> float:
    return 6.0 if len(curve.validation_steps) <= 40 else 0.0


def _finish(axes: Any, curves: Sequence[Curve], legend: list[tuple[Any, str]], *, title: str) -> None:
    """Scales, words and the legend, which stands above the axes so that it never hides a curve."""
    steps = _set_step_axis(axes, curves)
    losses = _set_loss_axis(axes, curves)
    axes.set_xlabel(steps, fontsize=14)
    axes.set_ylabel(losses, fontsize=14)
    axes.tick_params(labelsize=13)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    box = axes.figure.legend(
        [handle for handle, _ in legend],
        [label for _, label in legend],
        title=title,
        loc="outside upper left",
        ncols=3 if len(curves) == 1 else 2,
        alignment="left",
        frameon=False,
        handletextpad=0.5,
        fontsize=13,
        title_fontsize=15,
        borderpad=0.2,
    )
    for text in (box.get_title(), *box.get_texts()):
        text.set_parse_math(False)  # a run may be called "a$b$"


def _set_step_axis(axes: Any, curves: Sequence[Curve]) -> str:
    """Logarithmic where the longest run is over ten times the shortest: else that one is a dot."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lengths = [max(*curve.steps[-1:], *curve.validation_steps[-1:], 1.0) for curve in curves]
    logarithmic = max(lengths) > 10 * min(lengths)
    if logarithmic:
        axes.set_xscale("log", nonpositive="mask")  # step 0 has no place there
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return "training step" + (" (log scale)" if logarithmic else "")


def _set_loss_axis(axes: Any, curves: Sequence[Curve]) -> str:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    losses = np.concatenate([part for curve in curves for part in (curve.losses, curve.validation_losses)])
    low, high = float(losses.min()), float(losses.max())
    logarithmic = low > 0 and high > 2 * low
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_nice_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return "loss, nats per token" + (" (log scale)" if logarithmic else "")


def _nice_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [mantissa * 10.0**decade for decade in decades for mantissa in NICE]
    ticks = [tick for tick in ticks if low * 0.97 <= tick <= high * 1.03]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if f"{tick:.1e}"[:3] in ("1.0", "2.0", "5.0")]
    return ticks if len(ticks) <= 12 else [tick for tick in ticks if f"{tick:.1e}"[:3] == "1.0"]


@contextmanager
def _figure(path: Path) -> Iterator[Any]:
    """Axes to draw on; the picture appears at `path` whole or not at all."""
    with _matplotlib_without_traces():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.add_subplot()
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks is drawn as a box
        figure.savefig(picture, format="png", metadata={"Software": None})
    write_file(path, [picture.getvalue()])


@contextmanager
def _matplotlib_without_traces() -> Iterator[None]:
    """Import matplotlib so that it writes nothing into the home folder and looks at its own fonts only.

    By itself it makes ~/.config/matplotlib, and searches all fonts of the machine on its first start: seconds
    and a warning where there are thousands. A matplotlib that is loaded already, as in a notebook, stays.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="linnet-") as folder:
        ours = {"MPLCONFIGDIR": folder, "MPL_IGNORE_SYSTEM_FONTS": "1"}
        before = {key: os.environ.get(key) for key in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
