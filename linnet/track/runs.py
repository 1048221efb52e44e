"""What a run folder tells: how far, how good, how fast, how large, and whether it still works.

What: `summarize` makes a row of `linnet runs` of a folder, `find_runs` finds the folders.
Why:  "which of these was the good one?" must be answered without opening ten files.
How:  from the files alone, without torch, so that it answers at once and also while a run is training. A file
      that is missing or broken costs its columns, never the row; what is wrong is in `problems`.
"""

import json
import math
import os
import re
import socket
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from linnet.errors import LinnetError
from linnet.track.metrics import Row, scan_metrics

if sys.platform != "win32":
    import fcntl

State = Literal["running", "finished", "early stop", "diverged", "stopped", "new"]

LAST_STEPS = 20  # rows over which the training loss is a mean: one step alone is mostly noise
DIVERGED_STEPS = 5  # without a finite gradient in a row, after which the loop gives up: loop.MOST_SKIPPED


@dataclass
class RunSummary:
    """One row of the table. None is what the files do not tell."""

    name: str
    path: str
    recipe: str | None = None
    parent: str | None = None
    """The recipe's model.init_from where it is not "scratch": a hub name, a model folder or a run."""
    state: State = "new"
    step: int = 0
    """Finished steps."""
    steps: int | None = None
    """Planned steps."""
    training_loss: float | None = None
    """Mean over the last 20 logged steps."""
    validation_loss: float | None = None
    """The best one."""
    best_step: int | None = None
    tokens: int | None = None
    """Real ones that were trained on so far."""
    tokens_per_s: float | None = None
    """All tokens over all training time."""
    time_s: float = 0.0
    """Training time; evaluation, saving and stops left out."""
    parameters: int | None = None
    model_bytes: int | None = None
    """Of all files in model/."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the folder's files, a sentence each."""


def find_runs(folder: Path) -> list[Path]:
    """The run folders in `folder`, or `folder` itself if it is one; by name, with numbers in their order.

    Raises LinnetError where there are none.
    """
    if not folder.is_dir():
        raise LinnetError(f"There is no folder {folder}; name a folder of runs, or make one: linnet demo.")
    if _is_run(folder):
        return [folder]
    found = [path for path in folder.iterdir() if path.is_dir() and _is_run(path)]
    if not found:
        raise LinnetError(f"No folder in {folder} holds a run (it has a recipe.toml); make one: linnet demo.")
    return sorted(found, key=lambda path: _natural(path.name))


def summarize(folder: Path) -> RunSummary:
    """Read one run folder. Whatever is broken in it becomes an entry of `problems`."""
    return load_run(folder)[0]


def load_run(folder: Path, *, running: bool | None = None) -> tuple[RunSummary, list[Row]]:
    """As `summarize`, with the rows of metrics.jsonl; NaN for a number that was not finite.

    `running`: whether it trains; None looks at its lock. The training itself holds that until its very end.
    """
    run = RunSummary(name=own_path(folder).name, path=str(folder))
    recipe = _read_recipe(folder, run)
    train, model = _part(recipe, "train"), _part(recipe, "model")
    run.recipe, parent = _text(recipe, "name"), _text(model, "init_from")
    run.parent = None if parent == "scratch" else parent
    run.steps = _planned_steps(folder, run) or train.get("steps")
    rows = _read_rows(folder, run)
    _measure(run, rows)
    _weigh(folder / "model", run)
    run.state = _state(run, rows, patience=train.get("patience"))
    if _is_running(folder / "lock") if running is None else running and run.state in ("new", "stopped"):
        run.state = "running"
    return run, rows


def _is_run(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(
        (folder / name).is_file() for name in ("recipe.toml", "metrics.jsonl")
    )


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key that puts run-2 before run-10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)]


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    part = values.get(key)
    return part if isinstance(part, dict) else {}


def _text(values: dict[str, Any], key: str) -> str | None:
    text = values.get(key)
    return text if isinstance(text, str) and text else None


def _read_recipe(folder: Path, run: RunSummary) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.problems.append("recipe.toml is missing")
    except (OSError, ValueError) as error:  # ValueError: not TOML, not UTF-8
        run.problems.append(f"recipe.toml cannot be read: {error}")
    return {}


def _planned_steps(folder: Path, run: RunSummary) -> int | None:
    """What the newest start planned; a recipe may give epochs instead of steps."""
    try:
        environment = json.loads((folder / "environment.json").read_bytes())
        steps = environment["starts"][-1]["choices"]["steps"]["value"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        run.problems.append(f"environment.json cannot be read: {error}")
        return None
    except (LookupError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def _read_rows(folder: Path, run: RunSummary) -> list[Row]:
    path = folder / "metrics.jsonl"
    try:
        rows, damaged = scan_metrics(path)
    except LinnetError as error:
        run.problems.append(str(error))
        return []
    if damaged:
        lines = "line is" if len(damaged) == 1 else "lines are"
        run.problems.append(f"metrics.jsonl:{damaged[0]}: {len(damaged)} {lines} damaged and left out")
    return rows


def _measure(run: RunSummary, rows: list[Row]) -> None:
    """The columns that come from the metrics; numbers that are not finite do not count."""
    steps = [row for row in rows if "loss" in row and isinstance(row.get("step"), int)]
    if steps:
        last = steps[-1]
        run.step = last["step"]
        run.time_s = _number(last.get("time_s")) or 0.0
        tokens = _number(last.get("tokens"))
        run.tokens = None if tokens is None else int(tokens)
        run.tokens_per_s = tokens / run.time_s if tokens and run.time_s else None
        losses = [loss for row in steps[-LAST_STEPS:] if (loss := _number(row["loss"])) is not None]
        run.training_loss = sum(losses) / len(losses) if losses else None
    evaluations = [
        (loss, row["step"])
        for row in rows
        if (loss := _number(row.get("validation_loss"))) is not None and isinstance(row.get("step"), int)
    ]
    if evaluations:  # The model before the first step counts only where there is no other, as in the loop.
        trained = [pair for pair in evaluations if pair[1] > 0]
        run.validation_loss, run.best_step = min(trained or evaluations)


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # A whole number beyond all floats.
        return None
    return number if math.isfinite(number) else None


def _weigh(model: Path, run: RunSummary) -> None:
    """Parameters and bytes of the model folder. Only headers are read: a model of gigabytes costs no time."""
    if not model.is_dir():
        return
    files = [path for path in model.rglob("*") if path.is_file()]
    run.model_bytes = sum(path.stat().st_size for path in files)
    try:
        counts = [_parameters(path) for path in files if path.suffix == ".safetensors"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        run.problems.append(f"a .safetensors file in model/ cannot be read: {error}")
        return
    if counts:
        run.parameters = sum(counts)
    else:
        run.problems.append("model/ holds no .safetensors file")


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file: 8 bytes of header length, then a JSON header with each tensor's shape."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(100_000_000, path.stat().st_size - 8):
            raise ValueError(f"{path.name} is cut off or no safetensors file")
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _state(run: RunSummary, rows: list[Row], *, patience: object) -> State:
    """What the rows tell; they do not tell whether it is running."""
    if has_diverged(rows):
        return "diverged"
    if run.steps is not None and run.step >= run.steps:
        return "finished"
    if run.best_step is not None and isinstance(patience, int):
        evaluated = {row.get("step", 0) for row in rows if "validation_loss" in row}
        if sum(step > run.best_step for step in evaluated) >= patience:
            return "early stop"
    return "stopped" if run.step else "new"


def has_diverged(rows: list[Row]) -> bool:
    """Whether the last steps had no finite loss or gradient, which ended the training."""
    last = [row for row in rows if "loss" in row][-DIVERGED_STEPS:]
    skipped = [row for row in last if None in (_number(row["loss"]), _number(row.get("grad_norm", 0.0)))]
    return len(skipped) == DIVERGED_STEPS


def own_path(folder: Path) -> Path:
    """The run's folder with its name, also where that is "."; of a link its own, which is what one types."""
    return folder.absolute() if folder.is_symlink() else folder.resolve()


def _is_running(lock: Path) -> bool:
    """Whether a process holds the run's lock.

    First the process that the file names: where it is gone from this machine, nobody holds the lock. Only else is
    the lock itself tried, shared and for microseconds, so that a run that is just starting is not in its way.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        holder = _holder(os.read(descriptor, 4096))
        if holder is not None and not _is_alive(holder):
            return False
        if sys.platform == "win32":
            return holder is not None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # A file system without locks.
        return False
    finally:
        os.close(descriptor)
    return False


def _holder(content: bytes) -> int | None:
    """The process that a lock file names, if that is one of this machine."""
    try:
        holder = json.loads(content)
        return int(holder["pid"]) if holder["host"] == socket.gethostname() else None
    except (ValueError, LookupError, TypeError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # The process is someone else's.
    return True
