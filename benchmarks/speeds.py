"""What is made of the turns of candidates: the check that all compute the same, ratios round by round, their cells.

Why    train_throughput.py and finetune_rows.py compare in the same way; only what a step reads differs.
How    `check_losses` before anything is compared, then `Speeds`.
"""

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from turns import figure, spread

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # nats, of the first loss


@dataclass(frozen=True)
class Way:
    """One candidate: who, in which precision, compiled or not."""

    who: str
    precision: str
    """"auto": what Linnet chooses."""
    compiled: bool = False


def emulated(ways: Mapping[str, Way], *, device: str) -> dict[str, str]:
    """Candidates that this machine could only emulate, and why: 90 times slower than fp32 on two cores of a Zen 1."""
    from linnet.device import choose_precision

    if device != "cpu" or choose_precision("auto", "cpu").value == "bf16":
        return {}
    return {name: "this CPU has no bf16 products" for name, way in ways.items() if way.precision == "bf16"}


def check_losses(first: Mapping[str, float], ways: Mapping[str, Way]) -> None:
    """End the benchmark where a candidate computes another first loss than one in fp32."""
    names = sorted(first, key=lambda name: ways[name].precision != "fp32")
    if ways[names[0]].precision != "fp32":
        return  # Nothing to compare with yet.
    for name in names[1:]:
        limit = TOLERANCE["fp32" if ways[name].precision == "fp32" else "bf16"]
        gap = first[name] - first[names[0]]
        if not abs(gap) <= limit:
            sys.exit(
                f"{name} begins with a loss of {first[name]:.5f}, {names[0]} with {first[names[0]]:.5f}: the gap of "
                f"{gap:+.5f} is over {limit:g}, so they do not train alike and their speeds say nothing."
            )


class Speeds:
    """Tokens a second of each candidate and round, and how they compare."""

    def __init__(
        self,
        turns: Mapping[str, list[Any]],
        ways: Mapping[str, Way],
        *,
        default: str,
        speed: Callable[[Any], float],
    ) -> None:
        self.turns, self.default = turns, default
        self.speeds = {name: [speed(turn) for turn in found] for name, found in turns.items()}
        medians = {
            name: statistics.median(found)
            for name, found in self.speeds.items()
            if ways[name].who != "linnet"
        }
        self.best_peer = max(medians, key=lambda name: medians[name]) if medians else "none"

    def ratios(self, name: str, other: str) -> list[float]:
        """Round by round, times the speed of `other`; empty where that did not run."""
        if other not in self.speeds:
            return []
        return [a / b for a, b in zip(self.speeds[name], self.speeds[other], strict=True)]

    def figures(self, name: str) -> list[dict[str, Any]]:
        """Speed, ratios and memory, for --json."""
        rows = [figure(name, "tokens/s", self.speeds[name])]
        for label, other in ((self.default, self.default), ("best-peer", self.best_peer)):
            if ratios := self.ratios(name, other):
                rows.append(figure(f"{name}-times-{label}", "times", ratios))
        return [*rows, figure(f"{name}-memory", "GB", [turn["memory_gb"] for turn in self.turns[name]])]

    titles = ("tokens/s: min", "median", "max", "times default", "times best peer", "peak GB")

    def cells(self, name: str) -> list[str]:
        """Below `titles`."""
        ratios = [middle_of(self.ratios(name, other), ".2f") for other in (self.default, self.best_peer)]
        memory = max(turn["memory_gb"] for turn in self.turns[name])
        return [*spread(self.speeds[name], ",.0f"), *ratios, f"{memory:.2f}"]


def middle_of(values: list[float], form: str) -> str:
    """median (min to max), or nothing."""
    if not values:
        return ""
    low, middle, high = spread(values, form)
    return f"{middle} ({low} to {high})"
