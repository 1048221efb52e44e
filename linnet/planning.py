"""`linnet plan`: what a training will take, before anything is downloaded, prepared or built.

What   Bytes by item in the fullest moment, disk, time, and the settings that fit the memory.
Why    Whether it fits, and whether it ends today, should be known before an hour of downloading.
How    The arithmetic that `linnet train` chooses by (`linnet.training.plan`, `linnet.training.memory`), over the
       model's shape. Whatever is not known yet (the data are not prepared, the card is another one) is assumed, and
       that is said.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from linnet.config import Recipe
from linnet.device import ENDLESS, Choice, Machine, choose_device, this_machine
from linnet.errors import OutOfMemoryError, UsageError
from linnet.known import Data, find_data, model_shape
from linnet.model.gpt2 import GPT2Config
from linnet.preparing import SCRATCH
from linnet.recipe import build_recipe, parse_overrides, read_recipe_values
from linnet.run import RunFolder
from linnet.setup import choose_block
from linnet.track.metrics import read_metrics
from linnet.training.fitting import THRIFTY, fits_in, why_no_offload
from linnet.training.memory import ITEMS, MASTER, PROCESS, Training, host_bytes, moment_bytes, peak, trained
from linnet.training.plan import Plan, choose_block_size, make_plan, training_of
from linnet.training.speed import expected_speed

UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
UNKNOWN_ROWS = 1_000_000  # In an epoch, where nothing is known of the data: enough for any batch.
LENGTHS = ("steps", "eval_every", "save_every")  # Not known then either.
SETTINGS = ("micro_batch_size", "activation_checkpointing", "offload")


@dataclass(frozen=True)
class Forecast:
    """What `--json` prints. `bytes` are those of the fullest moment, and `peak_bytes` their sum."""

    bytes: dict[str, int]
    peak_bytes: int
    disk_bytes: int
    seconds: float | None
    """None where nothing is known of the speed or of the data."""
    fits: bool
    settings: dict[str, int | str]
    """Keys of the recipe with which it fits; {} where none are found."""
    memory_bytes: int
    """What there is: the free memory, or --memory."""
    device: str
    choices: dict[str, str]
    notes: list[str] = field(default_factory=list)


def show(
    name: str, *, overrides: Sequence[str], memory: str = "", device: str = "auto", as_json: bool = False
) -> None:
    """Print the forecast of a recipe to stdout, as a table or as JSON.

    Raises:
        UsageError: `memory` or `device` is not what it can be.
        LinnetError: the model's shape is not known and cannot be had.
    """
    recipe = build_recipe(read_recipe_values(name), parse_overrides(overrides), where=name)
    forecast = make_forecast(recipe, memory=memory, device=device)
    if as_json:
        print(json.dumps(asdict(forecast)))
    else:
        _print(forecast, name=recipe.name)


def make_forecast(recipe: Recipe, *, memory: str = "", device: str = "auto") -> Forecast:
    """All that can be said without making anything."""
    machine = _machine(recipe, memory=memory, device=device)
    config, tokenizer_from = model_shape(recipe)
    data = find_data(recipe, config=config, tokenizer_from=tokenizer_from)
    notes = [data.note]
    block = _block_size(recipe, config=config, data=data)
    if recipe.model.init_from == SCRATCH and recipe.model.n_positions == "auto":
        config = replace(config, n_positions=block.value)

    def planned(machine: Machine, **train: Any) -> Training:
        wanted = recipe.train.model_copy(update=train)
        plan = make_plan(
            wanted,
            block_size=block,
            count_rows=lambda size: data.rows(size) or UNKNOWN_ROWS,
            model=config,
            lora=recipe.model.lora,
            machine=machine,
            kept={},
        )
        plans.append(plan)
        return training_of(plan, model=config, optimizer=recipe.train.optimizer, lora=recipe.model.lora)

    plans: list[Plan] = []
    try:
        training = planned(machine)
    except OutOfMemoryError as error:
        notes.append(str(error))
        endless = replace(machine, free=ENDLESS)
        least = _thriftiest(recipe, training=planned(endless), host=machine.host)
        training = planned(endless, **least)
        chosen = {key: Choice(value, "what takes the least") for key, value in least.items()}
        plans[-1] = replace(plans[-1], choices=plans[-1].choices | chosen)
    plan = plans[-1]
    fits = fits_in(training, machine.free)
    settings = _settings(plan) if fits else {}
    if not fits:
        try:
            planned(machine, **dict.fromkeys(SETTINGS, "auto"))
            settings = _settings(plans[-1])
        except OutOfMemoryError as error:
            notes.append(str(error))
    seconds, how = _seconds(recipe, plan=plan, training=training, data=data, here=device)
    items = peak(training)
    choices = plan.choices if data.pairs else _without_epochs(recipe, plan)
    if training.offload:
        notes.append(f"offload: {_gb(host_bytes(training))} in the machine's memory besides")
    return Forecast(
        bytes={item: items[item] for item in ITEMS},
        peak_bytes=sum(items.values()),
        disk_bytes=disk_bytes(recipe, training),
        seconds=seconds,
        fits=fits,
        settings=settings,
        memory_bytes=parse_bytes(memory) if memory else machine.free + PROCESS[plan.device],
        device=plan.device,
        choices={
            key: f"{choice.value} ({choice.reason})" for key, choice in choices.items() if key != "memory"
        },
        notes=list(dict.fromkeys([*notes, how])),
    )


def _thriftiest(recipe: Recipe, *, training: Training, host: int) -> dict[str, Any]:
    """What takes the least of memory, of the keys that the recipe leaves open."""
    thrifty = THRIFTY if why_no_offload(training, host=host) else THRIFTY | {"offload": "on"}
    return {key: value for key, value in thrifty.items() if getattr(recipe.train, key) == "auto"}


def _without_epochs(recipe: Recipe, plan: Plan) -> dict[str, Choice]:
    """The choices where nothing is known of the data: no epochs are counted, and steps only if they are asked for."""
    if recipe.train.steps is None:
        return {key: choice for key, choice in plan.choices.items() if key not in LENGTHS}
    return plan.choices | {"steps": Choice(plan.steps, "asked for")}


def _settings(plan: Plan) -> dict[str, int | str]:
    return {f"train.{key}": getattr(plan, key) for key in SETTINGS}


def _machine(recipe: Recipe, *, memory: str, device: str) -> Machine:
    """This machine, or one with so much memory, or with a card that is not here."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is {device}, but must be auto, cpu or cuda.")
    here = this_machine(recipe.train.precision)
    if device == "cuda" and here.device.value != "cuda":
        if not memory:
            raise UsageError("There is no CUDA card here: say how large it is, such as --memory 4GB.")
        wanted = recipe.train.precision
        precision = Choice("bf16" if wanted == "auto" else wanted, "of a card; fp16 takes as much")
        here = Machine(Choice("cuda", "a card that is not here"), precision, 0)
    elif device == "cpu" and here.device.value != "cpu":
        raise UsageError("--device cpu is for machines without a card: a training would take the card.")
    if memory:
        here = replace(here, free=max(0, parse_bytes(memory) - PROCESS[here.device.value]))
    return here


def parse_bytes(text: str) -> int:
    """ "4GB" -> 4,000,000,000; "4GiB" counts in powers of 2.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    size = float(found[1]) * UNITS.get(found[2].upper(), math.inf) if found is not None else math.inf
    if not size < ENDLESS:
        raise UsageError(f"--memory is {text}, but must be a size, such as 4GB or 800MB.")
    return int(size)


def _block_size(recipe: Recipe, *, config: GPT2Config, data: Data) -> Choice:
    if data.store is not None:
        return choose_block(recipe, store=data.store, n_positions=config.n_positions)
    size = recipe.train.block_size
    if size != "auto":
        free = recipe.model.init_from == SCRATCH and recipe.model.n_positions == "auto"
        return choose_block_size(
            size, longest=None, pairs=0, n_positions=size if free else config.n_positions
        )
    return Choice(config.n_positions, "the model's window; rows of prepared data may be shorter")


def disk_bytes(recipe: Recipe, training: Training) -> int:
    """Most that the run folder takes: checkpoints that are kept, the best, one being written; model/ twice."""
    weights = MASTER * trained(training)
    checkpoint = weights + moment_bytes(replace(training, offload=False, shares=1))
    kept = recipe.train.keep + 1 + (1 if recipe.data.validation else 0)
    adapter = 2 * weights if training.lora.rank else 0
    return kept * checkpoint + 2 * MASTER * training.model.parameters + adapter


# -- time ------------------------------------------------------------------------------------------------------------


def _seconds(
    recipe: Recipe, *, plan: Plan, training: Training, data: Data, here: str
) -> tuple[float | None, str]:
    """How long the training will take, and how that is known."""
    if not data.pairs and recipe.train.steps is None:
        return None, "time: not known, for the number of steps is not"
    tokens = float(plan.steps * plan.batch_size * plan.block_size)
    speed = _measured_speed(recipe, training)
    how = f"time: at the speed of the last steps in runs/{recipe.name}"
    if speed is not None:  # It counts real tokens; rows of examples are not quite full.
        tokens *= data.pairs / (data.rows(plan.block_size) * plan.block_size) if data.pairs else 1.0
    else:
        if here == "cuda" and choose_device().value != "cuda":
            return None, "time: not known, for the card is not here"
        speed, reason = expected_speed(training)
        how = f"time: by {reason}"
    held_out = min(recipe.train.eval_tokens, data.pairs / 9) if recipe.data.validation else 0
    evaluations = 1 + math.ceil(plan.steps / plan.eval_every)
    return (tokens + evaluations * held_out / 3) / speed, how


def _measured_speed(recipe: Recipe, training: Training) -> float | None:
    """Real tokens/s of a run of this recipe with the same model on the same kind of device, if there is one."""
    folder = RunFolder(Path("runs") / recipe.name)
    values = folder.recipe_values().get("model", {})
    same = {key: getattr(recipe.model, key) for key in ("init_from", "n_layer", "n_embd")}
    same["lora"] = recipe.model.lora.model_dump()
    settings = {key: getattr(training, key) for key in ("block_size", "device", "precision")}
    if any(values.get(key) != value for key, value in same.items()) or any(
        folder.choice(key) != value for key, value in settings.items()
    ):
        return None
    rows = [row["tokens_per_s"] for row in read_metrics(folder.metrics) if "tokens_per_s" in row][-20:]
    return float(sorted(rows)[len(rows) // 2]) if rows else None


# -- the table -------------------------------------------------------------------------------------------------------


def _print(forecast: Forecast, *, name: str) -> None:
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for item, size in forecast.bytes.items():
        if size:
            table.add_row(item, _gb(size), _MEANING[item])
    there = f"of {_gb(forecast.memory_bytes)} on the {'card' if forecast.device == 'cuda' else 'machine'}"
    table.add_row(
        "peak", _gb(forecast.peak_bytes), f"{there}: {'it fits' if forecast.fits else 'it does not fit'}"
    )
    table.add_row("disk", _gb(forecast.disk_bytes), "checkpoints, the best, one being written, model/")
    table.add_row("time", _time(forecast.seconds), "")
    console.print(f"{name}: what a training takes", highlight=False, markup=False)
    console.print(table)
    choices = Table(show_header=False, box=None, pad_edge=False)
    for key, choice in forecast.choices.items():
        choices.add_row(key, Text(choice))
    console.print(choices)
    for note in forecast.notes:
        print(note)
    if forecast.settings:
        print("Settings that fit: " + " ".join(f"{key}={value}" for key, value in forecast.settings.items()))
    elif not forecast.fits:
        print("No setting of memory makes it fit.", file=sys.stderr)


_MEANING = {
    "weights": "in fp32, and the copies that 16-bit products read",
    "gradients": "",
    "moments": "of the optimizer",
    "activations": "what the backward pass needs of the forward pass",
    "logits": "scores of the vocabulary, a part at a time, and the head's gradient",
    "framework": "Python, torch and what they keep for themselves",
}


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
