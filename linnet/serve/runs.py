"""The runs of a folder, live: `/runs` and what its page asks for.

What   `runs_router` gives the routes: the page, plotly's JavaScript, the list of the runs, one run's curves and
       samples.
Why    Whether a training goes well is seen while it goes on, from the sofa as well, without a report being drawn.
How    From the run folders' files alone, as `linnet runs` does; the training does not know of it. Reading a run is
       shared by all who look, and takes at most a twentieth of the time. A page that has the rows up to some point says
       so (`?after=`) and is given the later ones; the point holds a checksum of all rows before it, so that a run that
       was cut back and resumed is sent anew. A curve has at most 2,000 points, its spikes kept.
"""

from __future__ import annotations

import importlib.util
import math
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from linnet.errors import LinnetError
from linnet.serve.refusals import Refusal
from linnet.track.metrics import Row
from linnet.track.plots import MOST_POINTS, Floats
from linnet.track.progress import printable
from linnet.track.report.contents import evaluations_of, is_continued
from linnet.track.report.curves import SMOOTH_FROM, Columns, smoothed, thin
from linnet.track.report.page import tilde
from linnet.track.runs import RunSummary, find_runs, load_run, own_path

STATIC = Path(__file__).parent / "static"
POLICY = (
    "; ".join(  # As the chat's, but plotly writes styles into its elements, and makes pictures of figures.
        (
            *(
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self' 'unsafe-inline'",
                "connect-src 'self'",
            ),
            *("img-src 'self' data: blob:", "font-src 'self'", "base-uri 'none'", "form-action 'none'"),
            "frame-ancestors 'none'",
        )
    )
)
SHARE = 20  # a run is read again after this many times what reading it took
FILES = ("recipe.toml", "environment.json", "metrics.jsonl", "samples.jsonl", "lock", "model")
DRAWN = {  # curve: its column in Columns.steps, whether it is smoothed
    "loss": ("loss", False),
    "loss_mean": ("loss", True),
    "learning_rate": ("learning_rate", False),
    "grad_norm": ("grad_norm", True),
    "tokens_per_s": ("tokens_per_s", True),
}

Signature = tuple[tuple[int, int] | None, ...]


def runs_router(folder: Path) -> APIRouter:
    """The routes below /runs for the runs in `folder`, or for `folder` itself if it is one."""
    router = APIRouter(include_in_schema=False)
    reading = Reading(folder)

    @router.get("/runs")
    def page() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return FileResponse(STATIC / "runs.html", headers=headers)

    @router.get("/static/page.json")
    def around() -> Response:
        """In the place of the file that says there are none: by it the chat knows that it can link to the runs."""
        return _json({"runs": True})

    @router.get("/runs/plotly.js")
    def plotly() -> Response:
        headers = {"Cache-Control": "public, max-age=86400"}
        return FileResponse(plotly_path(), media_type="text/javascript", headers=headers)

    @router.get("/runs/data")
    def listed() -> Response:
        return _json(reading.all())

    @router.get("/runs/data/{name}")
    def one(name: str, after: str = "") -> Response:
        return _json(reading.one(name, after=after))

    return router


def plotly_path() -> Path:
    """Its bundle, 4.8 MB. Plotly is not imported, which would take seconds."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise Refusal(500, "plotly is not installed: pip install plotly.", code="not_installed")
    return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"


@dataclass
class Kept:
    """What was read of a run."""

    run: RunSummary
    signature: Signature
    until: float
    """Of time.monotonic: before that it is not read again."""


class Reading:
    """The runs of a folder, read when somebody asks and something can be new. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: dict[Path, Kept] = {}
        self._rows: tuple[Path, list[Row]] | None = None  # of the run that was looked at last: rows are large

    def all(self) -> dict[str, Any]:
        """`{"runs": [...], "hint": ...}`; the hint says what to do where there are none."""
        with self._lock:
            try:
                folders = find_runs(self._folder)
            except (LinnetError, OSError) as error:
                return {"runs": [], "hint": _plain(str(error))}
            self._kept = {path: kept for path, kept in self._kept.items() if path in folders}
            return {"runs": [_shown(self._read(path)) for path in folders], "hint": ""}

    def one(self, name: str, *, after: str = "") -> dict[str, Any]:
        """The run `name` with its curves and samples: all of them, or what came `after` an earlier answer's `next`.

        Raises:
            Refusal: no run of the folder has this name.
        """
        with self._lock:
            path = self._find(name)
            run = self._read(path, rows=True)
            assert self._rows is not None
            columns = Columns.of(self._rows[1])
            size = _size(path / "samples.jsonl")
        point = Point.of(columns, samples=size)
        start = Point.parse(after)
        whole = start is None or not start.is_in(columns)
        if start is None or whole:
            start = Point(0, 0, 0, -1)
        answer = {
            "run": _shown(run),
            "next": str(point),
            "whole": whole,
            "steps": point.steps,
            "curves": _curves(columns, start),
        }
        if start.samples != size:
            evaluations, in_all = evaluations_of(path, run)
            answer["samples"] = [
                {
                    "step": one.step,
                    "samples": [[_plain(part) for part in sample] for sample in one.samples],
                }
                for one in reversed(evaluations)
            ]
            answer |= {"evaluations": in_all, "continued": is_continued(path)}
        return answer

    def _find(self, name: str) -> Path:
        """Only what the folder lists is opened: a name is never made into a path."""
        try:
            folders = find_runs(self._folder)
        except (LinnetError, OSError):
            folders = []
        for path in folders:
            if _name(path) == name:
                return path
        raise Refusal(404, "There is no run of this name here (any more).", code="run_not_found")

    def _read(self, path: Path, *, rows: bool = False) -> RunSummary:
        """Its summary; `rows`: and the rows into self._rows."""
        kept, started = self._kept.get(path), time.monotonic()
        has_rows = self._rows is not None and self._rows[0] == path
        signature = _signature(path)
        if kept is not None and (has_rows or not rows):
            # Whether a run is still running, no file tells: its process may have been killed.
            same = kept.signature == signature and kept.run.state != "running"
            if same or started < kept.until:
                return kept.run
        try:
            run, read = load_run(path)
        except (TypeError, ValueError, LookupError, AttributeError, OSError) as error:
            problem = f"the run cannot be read ({type(error).__name__}: {error})"
            run, read = RunSummary(own_path(path).name, str(path), problems=[problem]), []
        if rows or has_rows:
            self._rows = (path, read)
        ended = time.monotonic()
        self._kept[path] = Kept(run, signature, ended + SHARE * (ended - started))
        return run


@dataclass(frozen=True)
class Point:
    """How far a page has come: so many logged steps and evaluations, with a checksum of them, and bytes of samples."""

    steps: int
    evaluations: int
    checksum: int
    samples: int

    @classmethod
    def of(cls, columns: Columns, *, samples: int) -> Point:
        steps, evaluations = len(columns.steps["step"]), len(columns.evaluations["step"])
        return cls(steps, evaluations, _checksum(columns, steps, evaluations), samples)

    @classmethod
    def parse(cls, text: str) -> Point | None:
        """From its text; None for anything else."""
        parts = text.split(".")
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            return None
        return cls(*map(int, parts))

    def is_in(self, columns: Columns) -> bool:
        """Whether the rows up to here are still those of then."""
        return self.checksum == _checksum(columns, self.steps, self.evaluations)

    def __str__(self) -> str:
        return f"{self.steps}.{self.evaluations}.{self.checksum}.{self.samples}"


def _checksum(columns: Columns, steps: int, evaluations: int) -> int:
    """Of so many rows; -1 where there are not that many."""
    if steps > len(columns.steps["step"]) or evaluations > len(columns.evaluations["step"]):
        return -1
    result = 0
    for table, count, keys in (
        (columns.steps, steps, ("step", "loss")),
        (columns.evaluations, evaluations, ("step", "validation_loss")),
    ):
        for key in keys:
            result = zlib.crc32(table[key][:count].tobytes(), result)
    return result


def _curves(columns: Columns, start: Point) -> dict[str, Any]:
    """The curves from `start` on."""
    table = columns.steps
    curves: dict[str, Any] = {}
    for name, (key, smooth) in DRAWN.items():
        smooth = smooth and len(table[key]) >= SMOOTH_FROM
        if name == "loss_mean" and not smooth:
            continue
        curves[name] = _curve(table, smoothed(table[key]) if smooth else table[key], start.steps)
    evaluations = columns.evaluations
    curves["held_out"] = _curve(evaluations, evaluations["validation_loss"], start.evaluations)
    return curves


def _curve(table: Mapping[str, Floats], values: Floats, start: int) -> dict[str, list[float | None]]:
    """Its points from row `start` on, thinned out: places on the three axes, and heights."""
    later = values[start:]
    keep = start + thin(later, MOST_POINTS) if np.isfinite(later).any() else np.arange(0)
    places = {key: _rounded(table[key][keep]) for key in ("step", "tokens", "time")}
    return {**places, "y": _rounded(values[keep])}


def _rounded(values: Floats) -> list[float | None]:
    """Seven digits are more than a screen shows; None for what is not finite, which leaves a gap."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values.tolist()]


def _shown(run: RunSummary) -> dict[str, Any]:
    """A run for the page: without the place of its folder, which is nobody's business."""
    shown = {key: _plain(value) if isinstance(value, str) else value for key, value in asdict(run).items()}
    shown |= {"name": _name(Path(shown.pop("path"))), "problems": [_plain(text) for text in run.problems]}
    return shown


def _name(path: Path) -> str:
    return _plain(own_path(path).name)


def _plain(text: str) -> str:
    """As JSON can hold it, without control characters and the name of the home folder."""
    return tilde(printable(text.encode(errors="replace").decode()))


def _signature(path: Path) -> Signature:
    """What changes when a file of the run does."""
    found: list[tuple[int, int] | None] = []
    for name in FILES:
        try:
            status = (path / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size))
    return tuple(found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _json(value: dict[str, Any]) -> Response:
    """Numbers that are not finite become null."""
    return Response(orjson.dumps(value), media_type="application/json", headers={"Cache-Control": "no-store"})
