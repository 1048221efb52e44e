"""From "auto" to numbers: rows, steps, micro-batch, device, precision, each with its reason.

What   `make_plan(...)` turns the recipe's train part, the data's size and the machine into a `Plan`.
Why    A tiny data set must still train and a large model must still fit; what was chosen has to be said.
How    Pure arithmetic over shapes. The same recipe, data and kind of machine give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from linnet.config import LoraConfig, OptimizerName, TrainConfig
from linnet.device import Choice, Machine
from linnet.errors import UsageError
from linnet.model.gpt2 import GPT2Config
from linnet.training.fitting import choose_fitting
from linnet.training.memory import Training

BATCH_TOKENS = 8192  # Tokens of an optimizer step that batch_size="auto" aims at.
LEAST_STEPS = 20  # Optimizer steps that an epoch should have.


@dataclass(frozen=True)
class Plan:
    """What a training will do, without any "auto"."""

    device: str
    precision: str
    block_size: int
    batch_size: int
    micro_batch_size: int
    steps: int
    eval_every: int
    save_every: int
    activation_checkpointing: Literal["off", "on"] = "off"
    """Keep of each block its input only."""
    offload: Literal["off", "on"] = "off"
    """Master weights and moments in the machine's memory."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes: each with the whole model, or with its share of it."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """By key, what "auto" became and why."""


def choose_block_size(requested: int | str, *, longest: int | None, pairs: int, n_positions: int) -> Choice:
    """Tokens in a row.

    Args:
        longest: most (input, target) pairs of one example for row formats; None for continuous text.
        pairs: all pairs of the training data.
        n_positions: the model's window, or the largest wanted where the model is made to measure.

    For row formats "auto" is the longest example rounded up to 64; less, but never below the longest example rounded
    up to 8, where an epoch would not have 20 rows. For text it is the model's window, or a 20th of a short text.

    Raises:
        UsageError: a requested size over the model's positions.
    """
    if isinstance(requested, int):
        if requested > n_positions:
            raise UsageError(
                f"train.block_size={requested} is over the model's {n_positions} positions; "
                f"set train.block_size={n_positions} or less."
            )
        return Choice(requested, "asked for")
    fair = max(1, pairs // LEAST_STEPS)  # The largest with at least 20 full rows,
    fair = fair // 8 * 8 or fair  # a multiple of 8 where that is possible.
    if longest is None:
        size = min(n_positions, fair)
        reason = "the model's window" if size == n_positions else f"{LEAST_STEPS} rows from {pairs:,} tokens"
        return Choice(size, reason)
    most, least = -(-longest // 64) * 64, -(-longest // 8) * 8
    size = max(least, min(most, fair))
    if size >= n_positions:
        return Choice(
            n_positions, f"the longest example has {longest:,} tokens, the model {n_positions} positions"
        )
    return Choice(size, f"the longest example has {longest:,} tokens")


def choose_batch_size(requested: int | str, *, rows: int, block_size: int, world: int = 1) -> Choice:
    """Rows of an optimizer step; "auto" is about 8,192 tokens, fewer where an epoch would have under 20 steps.

    Always as many for each of the `world` processes.
    """
    if isinstance(requested, int):
        return Choice(requested, "asked for")
    wanted = max(1, BATCH_TOKENS // block_size // world) * world
    size = max(1, min(wanted, rows // LEAST_STEPS) // world) * world
    if size < wanted:
        return Choice(size, f"{rows:,} rows in an epoch: at least {LEAST_STEPS} steps where that is possible")
    return Choice(size, f"about {BATCH_TOKENS:,} tokens a step")


def training_of(plan: Plan, *, model: GPT2Config, optimizer: OptimizerName, lora: LoraConfig) -> Training:
    """What memory depends on in this plan, for one process alone."""
    return Training(
        model=model,
        device=plan.device,
        precision=plan.precision,
        block_size=plan.block_size,
        rows=plan.micro_batch_size,
        batch_size=plan.batch_size,
        optimizer=optimizer,
        lora=lora,
        recompute=plan.activation_checkpointing == "on",
        offload=plan.offload == "on",
    )


def make_plan(
    config: TrainConfig,
    *,
    block_size: Choice,
    count_rows: Callable[[int], int],
    model: GPT2Config,
    lora: LoraConfig,
    machine: Machine,
    kept: Mapping[str, Any],
    world: int = 1,
    shares: int = 1,
) -> Plan:
    """Everything that is chosen at the start, the same on each of `world` processes.

    Args:
        count_rows: rows of an epoch at a block size.
        kept: what an earlier start of this run chose. Batch and micro-batch stay unless the recipe sets them, the
            micro-batch and what else memory decides only on the same kind of device.
        shares: processes over which the model is cut.

    Raises:
        OutOfMemoryError: not even a row fits.
    """
    device, precision = machine.device, machine.precision
    rows = count_rows(block_size.value)
    batch_size = choose_batch_size(config.batch_size, rows=rows, block_size=block_size.value, world=world)
    if kept and config.batch_size == "auto":
        batch_size = Choice(kept["batch_size"], "as when the run began")
    own = -(-batch_size.value // world)  # Rows of this process.
    training = Training(
        model=model,
        device=device.value,
        precision=precision.value,
        block_size=block_size.value,
        rows=own,
        batch_size=own,
        optimizer=config.optimizer,
        lora=lora,
        shares=shares,
    )
    same = kept if kept and kept["device"] == device.value else {}
    fitting = choose_fitting(config, training, free=machine.free, kept=same, world=world, host=machine.host)
    memory = fitting.pop("memory")
    steps_per_epoch = rows / batch_size.value
    if config.steps is not None:
        steps = Choice(config.steps, f"asked for; {config.steps / steps_per_epoch:.2f} epochs")
    else:
        epochs = config.epochs or 1.0
        count = max(1, math.ceil(epochs * steps_per_epoch))
        steps = Choice(count, f"{epochs:g} epochs of {rows:,} rows")
    tenth = max(1, steps.value // 10)
    every = {
        key: Choice(tenth, "a tenth of the run") if wanted == "auto" else Choice(wanted, "asked for")
        for key, wanted in (("eval_every", config.eval_every), ("save_every", config.save_every))
    }
    choices = {
        "device": device,
        "precision": precision,
        "block_size": block_size,
        "batch_size": batch_size,
        **fitting,
        "steps": steps,
        **every,
    }
    settings = {key: choice.value for key, choice in choices.items()}
    return Plan(**settings, choices=choices | {"memory": memory})
