"""From "auto" to numbers: rows, steps, micro-batch, device, precision, each with its reason.

What   `make_plan(...)` turns the recipe's train part, the data's size and the machine into a `Plan`.
Why    A tiny data set must still train and a large model must still fit; what was chosen has to be said.
How    Pure arithmetic over shapes. The same recipe, data and kind of machine give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from linnet.config import TrainConfig
from linnet.device import Choice, choose_device, choose_precision, free_memory
from linnet.errors import UsageError

BATCH_TOKENS = 8192  # Tokens of an optimizer step that batch_size="auto" aims at.
MICRO_TOKENS = 4096  # Tokens computed at once on a CPU: more is no faster and only takes memory.
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


def choose_batch_size(requested: int | str, *, rows: int, block_size: int) -> Choice:
    """Rows of an optimizer step; "auto" is about 8,192 tokens, fewer where an epoch would have under 20 steps."""
    if isinstance(requested, int):
        return Choice(requested, "asked for")
    wanted = max(1, BATCH_TOKENS // block_size)
    size = max(1, min(wanted, rows // LEAST_STEPS))
    if size < wanted:
        return Choice(size, f"{rows:,} rows in an epoch: at least {LEAST_STEPS} steps where that is possible")
    return Choice(size, f"about {BATCH_TOKENS:,} tokens a step")


def choose_micro_batch_size(
    requested: int | str, *, batch_size: int, block_size: int, bytes_per_token: int, device: str
) -> Choice:
    """Rows computed at once; "auto" is at most 4,096 tokens on a CPU and what fits half the free memory."""
    if isinstance(requested, int):
        return Choice(min(requested, batch_size), "asked for")
    fits = max(1, int(free_memory() * 0.5) // (bytes_per_token * block_size))
    wanted = batch_size if device == "cuda" else max(1, MICRO_TOKENS // block_size)
    size = min(batch_size, wanted, fits)
    if size == batch_size:
        return Choice(size, "the whole batch at once")
    return Choice(
        size, "what fits the memory" if size == fits < wanted else f"about {MICRO_TOKENS:,} tokens at once"
    )


def activation_bytes(*, n_layer: int, n_embd: int) -> int:
    """Bytes that backward keeps for a token: 17 values of `n_embd` in each block, 4 bytes each.

    Per block, in units of n_embd: two norms' inputs 2, qkv 3, attention out 1, its projection's input 1 and output 1,
    c_fc out 4, GELU out 4, c_proj out 1.
    """
    return 17 * n_layer * n_embd * 4


def make_plan(
    config: TrainConfig,
    *,
    block_size: Choice,
    count_rows: Callable[[int], int],
    n_layer: int,
    n_embd: int,
    parameters: int,
    kept: Mapping[str, Any],
) -> Plan:
    """Everything that is chosen at the start.

    Args:
        count_rows: rows of an epoch at a block size.
        kept: what an earlier start of this run chose. Batch and micro-batch stay unless the recipe sets them, the
            micro-batch only on the same kind of device.
    """
    device = choose_device()
    precision = choose_precision(config.precision, device.value)
    rows = count_rows(block_size.value)
    batch_size = choose_batch_size(config.batch_size, rows=rows, block_size=block_size.value)
    if kept and config.batch_size == "auto":
        batch_size = Choice(kept["batch_size"], "as when the run began")
    bytes_per_token = activation_bytes(n_layer=n_layer, n_embd=n_embd)
    micro = choose_micro_batch_size(
        config.micro_batch_size,
        batch_size=batch_size.value,
        block_size=block_size.value,
        bytes_per_token=bytes_per_token,
        device=device.value,
    )
    if kept and config.micro_batch_size == "auto" and kept["device"] == device.value:
        micro = Choice(min(kept["micro_batch_size"], batch_size.value), "as when the run began")
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
        "micro_batch_size": micro,
        "steps": steps,
        **every,
    }
    settings = {key: choice.value for key, choice in choices.items()}
    activations = micro.value * block_size.value * bytes_per_token
    choices["memory"] = choose_memory(parameters=parameters, activations=activations)
    return Plan(**settings, choices=choices)


def choose_memory(*, parameters: int, activations: int) -> Choice:
    """What the training will about take: 16 bytes a parameter (weight, gradient, two moments) and activations."""
    fixed = 16 * parameters
    reason = f"weights, gradients and moments {fixed / 1e9:.2f} GB, activations {activations / 1e9:.2f} GB"
    return Choice(f"{(fixed + activations) / 1e9:.2f} GB", f"{reason}; {free_memory() / 1e9:.1f} GB are free")
