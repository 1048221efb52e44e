"""The rows of a run, step by step, as a sink wants them.

What   `Follow(root).take()` gives the steps that are whole since the last call: numbers by the names of their curves,
       and what the model wrote.
Why    A sink's key is the step, and wandb takes each step once and only upwards. So a step is handed over once,
       with its training row, its evaluation and its samples together.
How    metrics.jsonl and samples.jsonl are read from where the last call stopped. A step is whole as soon as its
       evaluation or a later step is there.
"""

from __future__ import annotations

import contextlib
import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnet.track.metrics import Row, rows_from


@dataclass
class Step:
    """Everything about one step."""

    number: int
    time_s: float = 0.0
    """Seconds of training since the run began."""
    values: dict[str, float] = field(default_factory=dict)
    """By the name of the curve: train/loss, validation/loss, ..."""
    samples: list[tuple[str, str]] = field(default_factory=list)
    """(prompt, text)"""


class Follow:
    """Reads what a run has written since the last time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read = {"metrics": 0, "samples": 0}  # bytes
        self._steps: dict[int, Step] = {}  # not handed over yet
        self._newest = -1
        self._evaluated = -1  # the newest evaluation

    def take(self, *, ended: bool = False) -> Iterator[Step]:
        """The whole steps since the last call, in order; `ended` says that no row will follow."""
        while self._read_on():
            yield from self._up_to(max(self._newest - 1, self._evaluated))
        if ended and not self._waits_for_evaluation(self._newest):
            yield from self._up_to(self._newest)

    def _read_on(self) -> bool:
        """Read a piece of metrics.jsonl and all of samples.jsonl; False where there are no new rows.

        The rows first: the samples of a step are written before any row of a later step, so that a step whose
        successor is known has all its samples.
        """
        rows = self._rows("metrics")
        for row in rows:
            step = self._step(row)
            self._newest = max(self._newest, step.number)
            if "validation_loss" in row:
                self._evaluated = step.number
            step.time_s = _number(row.get("time_s", 0.0))
            step.values |= curves(row)
        while samples := self._rows("samples"):
            for row in samples:
                self._step(row).samples.append((str(row.get("prompt", "")), str(row.get("text", ""))))
        return bool(rows)

    def _up_to(self, whole: int) -> list[Step]:
        return [self._steps.pop(number) for number in sorted(self._steps) if number <= whole]

    def _rows(self, name: str) -> list[Row]:
        rows, self._read[name] = rows_from(self._root / f"{name}.jsonl", self._read[name])
        return [row for row in rows if isinstance(row.get("step"), int)]

    def _step(self, row: Row) -> Step:
        return self._steps.setdefault(row["step"], Step(row["step"]))

    def _waits_for_evaluation(self, step: int) -> bool:
        """Whether a run that goes on will evaluate at this step, its newest. A run without held-out text never does:
        its step 0 was not evaluated."""
        if self._evaluated in (-1, step):
            return False
        chosen = read_facts(self._root)["chosen"]
        every, last = chosen.get("eval_every"), chosen.get("steps")
        return step == last or (isinstance(every, int) and step % every == 0)


def curves(row: Row) -> dict[str, float]:
    """The numbers of a row by the names of their curves; null, which is what was not finite, as NaN.

    >>> curves({"step": 3, "time_s": 1.5, "validation_loss": 2.0})
    {'validation/loss': 2.0}
    """
    named = {}
    of_evaluation = "validation_loss" in row
    for key, value in row.items():
        if key == "step" or (key == "time_s" and of_evaluation):
            continue
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            name = f"validation/{key.removeprefix('validation_')}" if of_evaluation else f"train/{key}"
            named[name] = _number(value)
    return named


def read_facts(root: Path) -> dict[str, Any]:
    """What a sink shows of the run beside its rows.

    Returns:
        `recipe` as in recipe.toml, `chosen` (what "auto" became at the newest start), `started` (the first start as
        environment.json has it). What is missing or damaged is empty.
    """
    facts: dict[str, Any] = {"recipe": {}, "chosen": {}, "started": {}}
    with contextlib.suppress(OSError, ValueError):
        facts["recipe"] = tomllib.loads((root / "recipe.toml").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        starts = json.loads((root / "environment.json").read_bytes())["starts"]
        facts["started"] = starts[0]
        facts["chosen"] = {key: choice["value"] for key, choice in starts[-1]["choices"].items()}
    return facts


def _number(value: Any) -> float:
    return math.nan if value is None else value
