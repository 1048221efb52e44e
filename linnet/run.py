"""The run folder: everything that one training knows, and whether it may go on.

What   `RunFolder` names the files; `compare_recipes` says what changed since the last start.
Why    A run is started, killed, resumed and extended, by the same command. Whatever would silently make it another
       run is refused by the name of the field.
How    The recipe that counts is the one in the newest checkpoint; recipe.toml is its readable copy.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnet import files
from linnet.config import Recipe
from linnet.device import describe_machine
from linnet.errors import LinnetError
from linnet.recipe import dump_recipe, flatten, read_recipe_values
from linnet.training.plan import Plan

FREE_TO_CHANGE = {
    "data.workers",
    "data.engine",
    "data.max_bad",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.offload",
    "train.parallel",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.keep",
    "track.sinks",
    "track.wait",
}
LENGTH = {"train.steps", "train.epochs"}
# Weights and moments of other shapes cannot go on, whatever is accepted.
FIXED = {"model.n_layer", "model.n_head", "model.n_embd", "train.optimizer"}
# What was found not to fit into memory is tried again where one of these has changed.
MEMORY = {
    "train.block_size",
    "train.micro_batch_size",
    "train.precision",
    "train.activation_checkpointing",
    "train.offload",
}


@dataclass(frozen=True)
class RunFolder:
    """The files of a run below `root`."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.toml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def recipe_values(self) -> dict[str, Any]:
        """What recipe.toml holds; nothing where it is missing or damaged (the checkpoint's copy counts)."""
        try:
            return read_recipe_values(str(self.recipe)) if self.recipe.is_file() else {}
        except LinnetError:
            return {}

    def choice(self, key: str) -> Any:
        """What a setting was at the last start; None where environment.json is missing or damaged."""
        try:
            return json.loads(self.environment.read_bytes())["starts"][-1]["choices"][key]["value"]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def block_size(self) -> int | None:
        """What train.block_size was at the last start, if that is known."""
        value = self.choice("block_size")
        return value if isinstance(value, int) and value > 0 else None

    def write_recipe(self, recipe: Recipe) -> None:
        """recipe.toml with every default written out; "auto" stays "auto".

        Raises:
            LinnetError: a value has bytes that are not UTF-8, as a file's name may.
        """
        try:
            content = dump_recipe(recipe).encode()
        except UnicodeEncodeError as error:
            line = str(error.object).count("\n", 0, error.start)
            value = str(error.object).split("\n")[line].strip(" ,").encode(errors="replace").decode()
            raise LinnetError(
                f"recipe.toml takes UTF-8 only, and in {value} something is not; rename the file, or where the "
                "terminal is to blame, set LC_ALL=C.UTF-8."
            ) from error
        files.write_file(self.recipe, [content])

    def write_environment(
        self,
        plan: Plan,
        *,
        parent: Mapping[str, Any],
        data: Mapping[str, Any],
        changes: list[Change],
        step: int,
    ) -> None:
        """Add this start to environment.json: machine, what "auto" became and why, command, changes."""
        starts: list[Any] = []
        if step > 0 and self.environment.is_file():
            try:
                starts = json.loads(self.environment.read_bytes())["starts"]
            except (ValueError, KeyError, TypeError):
                starts = []
        start = {
            "step": step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join([*map(_program, sys.argv[:1]), *sys.argv[1:]]),
            "machine": describe_machine(),
            "choices": {key: {"value": c.value, "reason": c.reason} for key, c in plan.choices.items()},
            "changes": [vars(change) for change in changes],
        }
        files.write_json(self.environment, {"parent": dict(parent), "data": data, "starts": [*starts, start]})


def _program(path: str) -> str:
    """The program's name as one types it, without the folders of this machine."""
    program = Path(path)
    return program.parent.name if program.name == "__main__.py" else program.name


@dataclass(frozen=True)
class Change:
    """A key whose value differs between the run so far and now."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} was {_show(self.old)} and is {_show(self.new)} now"


def compare_recipes(old: Recipe, new: Recipe) -> list[Change]:
    """All keys in which two recipes differ."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    return [Change(key, before[key], after[key]) for key in before if before[key] != after[key]]


def refuse_changes(changes: list[Change], *, steps: tuple[int, int], root: Path, accepted: bool) -> None:
    """Raise for the first change that would make the run another one.

    Free are the keys in FREE_TO_CHANGE, and `steps` / `epochs` where the run gets longer. `accepted`
    (--accept-changes) allows all.

    Args:
        steps: planned steps before and now.

    Raises:
        LinnetError: names the field, both values and the ways out.
    """
    longer = steps[1] >= steps[0]
    for change in changes:
        if accepted or change.key in FREE_TO_CHANGE or (change.key in LENGTH and longer):
            continue
        another = f"start another run with --run {root}-2"
        ways = f"or {another}"
        if change.key not in FIXED:
            ways = f"{another}, or go on with the new one with --accept-changes"
        raise LinnetError(f"{change}, but {root} was trained with the old value: go back to it, {ways}.")


def _show(value: Any) -> str:
    return "not set" if value is None else str(value)
