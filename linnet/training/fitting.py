"""What fits: rows at once, activation checkpointing and offload, by the arithmetic of `linnet.training.memory`.

What   `choose_fitting(...)` turns "auto" into settings with which a step fits the free memory, each with its reason.
Why    Running out of memory in the middle costs a step, or on a CPU the process; a setting that saves memory where
       there is enough costs time.
How    From the fastest to the thriftiest: as it is, with checkpointing, with offload, with both; the first in which
       enough rows fit, with as many as fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from linnet.config import LoraConfig, TrainConfig
from linnet.device import ENDLESS, Choice
from linnet.errors import OutOfMemoryError, UsageError
from linnet.training.memory import ITEMS, Training, host_bytes, most_rows, needed, peak

MICRO_TOKENS = 4096  # Tokens computed at once on a CPU: more is no faster and only takes memory.
ENOUGH_TOKENS = 1024  # At once: with fewer it is better to compute activations twice.
# Of the free memory: the arithmetic is right within 10 %. A card that runs out says so, and the step is done again with
# fewer rows; a CPU's system may end the process.
USABLE = {"cpu": 0.9, "cuda": 0.95}
THRIFTY = {"micro_batch_size": 1, "activation_checkpointing": "on"}
"""What takes the least, whatever the machine."""


def choose_fitting(
    config: TrainConfig,
    training: Training,
    *,
    free: int,
    kept: Mapping[str, Any],
    world: int = 1,
    host: int = ENDLESS,
) -> dict[str, Choice]:
    """Rows at once, checkpointing, offload and the memory that they take.

    Args:
        training: with the batch of this process; its rows, checkpointing and offload are what is chosen here.
        kept: what an earlier start of this run chose on the same kind of device; {} for a new one.
        host: bytes of the machine's memory that are free.

    Raises:
        UsageError: offload where it cannot be.
        OutOfMemoryError: not even a row fits.
    """
    wanted = _wanted_rows(config, training, kept=kept)
    refused = why_no_offload(training, world=world, host=host)
    if config.offload == "on" and refused and training.device == "cuda":
        raise UsageError(f"train.offload=on: {refused}; set train.offload=off.")
    ways = []
    for offload in _options(config.offload, kept.get("offload"), allowed=not refused):
        for recompute in _options(config.activation_checkpointing, kept.get("activation_checkpointing")):
            settings = replace(training, rows=wanted.value, recompute=recompute, offload=offload)
            rows = most_rows(settings, free=usable(settings, free))
            if rows == wanted.value or (rows and config.micro_batch_size == "auto"):
                ways.append(replace(settings, rows=rows))
    if not ways:  # `settings` is the thriftiest.
        if needed(replace(settings, rows=1)) > free:
            raise OutOfMemoryError(
                f"{_too_much(replace(settings, rows=1), free)} {advice(settings, free=free)}"
            )
        ways = [settings if config.micro_batch_size != "auto" else replace(settings, rows=1)]
    enough = min(wanted.value * training.block_size, ENOUGH_TOKENS)
    chosen = next((way for way in ways if way.tokens >= enough), max(ways, key=lambda way: way.rows))
    if chosen.rows < wanted.value:
        wanted = Choice(chosen.rows, "what fits the memory")
    return {
        "micro_batch_size": wanted,
        "activation_checkpointing": _switch(
            config.activation_checkpointing,
            chosen.recompute,
            on="what the blocks keep would not fit",
            off="all activations fit",
        ),
        "offload": _switch(
            config.offload,
            chosen.offload,
            on="weights and moments would not fit on the card",
            off=refused or "weights and moments fit",
            refused=refused,
        ),
        "memory": memory_line(chosen, free=free),
    }


def usable(training: Training, free: int) -> int:
    """Of `free` bytes those that a plan may count on."""
    return int(USABLE[training.device] * free)


def fits_in(training: Training, free: int) -> bool:
    """Whether it fits as it is."""
    return needed(training) <= usable(training, free)


def why_no_offload(training: Training, *, world: int = 1, host: int = ENDLESS) -> str:
    """Why masters and moments stay on the device; "" where they may go."""
    taken = host_bytes(replace(training, offload=True))
    if training.device != "cuda":
        return "a CPU's memory holds them in any case"
    if training.optimizer == "muon":
        return "muon's products would be the processor's"
    if training.lora.rank:
        return "adapters are small"
    if world > 1:
        return "each of several processes keeps its own"
    if taken > USABLE["cpu"] * host:
        return f"it takes {taken / 1e9:.1f} GB of the machine's memory, and {host / 1e9:.1f} GB are free"
    return ""


def memory_line(training: Training, *, free: int) -> Choice:
    """The peak and its items, and what there is."""
    items = peak(training)
    named = ", ".join(
        f"{name} {items[name] / 1e9:.2f}" for name in ITEMS if name != "framework" and items[name]
    )
    there = f"{free / 1e9:.1f} GB are free"
    if training.offload:
        there += f"; {host_bytes(training) / 1e9:.1f} GB in the machine's memory"
    return Choice(f"{needed(training) / 1e9:.2f} GB", f"{named}; {there}")


def advice(training: Training, *, free: int) -> str:
    """What would fit: fewer tokens in a row, or adapters."""
    thrifty = replace(training, rows=1, recompute=True)
    ways = []
    for size in (512, 256, 128):
        if size < training.block_size and fits_in(replace(thrifty, block_size=size), free):
            ways.append(f"train.block_size={size}")
            break
    if not training.lora.rank:
        for lora in (LoraConfig(rank=8), LoraConfig(rank=8, base="int8")):
            if fits_in(replace(thrifty, lora=lora, offload=False), free):
                keys = "model.lora.rank=8" + (" model.lora.base=int8" if lora.base == "int8" else "")
                ways.append(f"{keys} (adapters beside a model that is there)")
                break
    return f"What fits: {' or '.join(ways)}." if ways else "Take a smaller model."


def _wanted_rows(config: TrainConfig, training: Training, *, kept: Mapping[str, Any]) -> Choice:
    """Rows at once if memory were no matter."""
    most = training.batch_size
    if config.micro_batch_size != "auto":
        return Choice(min(config.micro_batch_size, most), "asked for")
    if "micro_batch_size" in kept:
        return Choice(min(kept["micro_batch_size"], most), "as when the run began")
    tokens = max(1, MICRO_TOKENS // training.block_size)
    if training.device == "cuda" or tokens >= most:
        return Choice(most, "the whole batch at once")
    return Choice(tokens, f"about {MICRO_TOKENS:,} tokens at once")


def _options(requested: str, before: str | None, *, allowed: bool = True) -> list[bool]:
    if not allowed:
        return [False]
    if requested != "auto":
        return [requested == "on"]
    return [True] if before == "on" else [False, True]


def _switch(requested: str, value: bool, *, on: str, off: str, refused: str = "") -> Choice:
    reason = "asked for" if requested != "auto" and not refused else on if value else off
    return Choice("on" if value else "off", reason)


def _too_much(training: Training, free: int) -> str:
    place = "card" if training.device == "cuda" else "machine"
    return (
        f"A single row of {training.block_size:,} tokens takes {needed(training) / 1e9:.2f} GB and {free / 1e9:.2f} GB "
        f"of the {place}'s memory are free."
    )
