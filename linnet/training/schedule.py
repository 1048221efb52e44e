"""The learning rate of each step.

What: `learning_rate(step, ...)`, four shapes behind one warmup.
Why:  a pure function of the step's number, so that resuming needs no state of it and a test no loop.
How:  linear warmup, then one of
      cosine    half a cosine down to the final share
      linear    a straight line down to the final share
      wsd       warmup, stable, decay: flat, then a straight line down over the last part of the steps
      constant  flat
"""

import math
from typing import get_args

from linnet.config import Schedule

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

# Last part of a wsd run in which the rate falls. See "wsd" in LOG.md for the shares tried.
DECAY_SHARE = 0.4


def learning_rate(
    step: int, *, steps: int, peak: float, warmup_steps: int, schedule: Schedule, final_share: float = 0.0
) -> float:
    """Learning rate of the update number `step` (0-based) in a run of `steps` updates.

    The warmup rises by `peak / (warmup_steps + 1)` a step, so that step 0 already learns and step
    `warmup_steps` is the first at `peak`. `final_share` is the share of the peak that step number `steps`
    would have: no step is ever run at exactly 0. A warmup longer than the run is cut to it.

        >>> [learning_rate(s, steps=4, peak=1.0, warmup_steps=1, schedule="linear") for s in range(4)]
        [0.5, 1.0, 0.6666666666666667, 0.33333333333333337]

    Raises ValueError for an unknown schedule or a step outside 0..steps - 1.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is not within a run of {steps} steps")
    warmup_steps = min(warmup_steps, steps - 1)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    share = _share_of_peak((step - warmup_steps) / (steps - warmup_steps), schedule)
    return peak * (final_share + (1.0 - final_share) * share)


def _share_of_peak(progress: float, schedule: Schedule) -> float:
    """From 1 at progress 0 (warmup done) to 0 at progress 1 (run done), but for `constant`."""
    match schedule:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            return 1.0 - progress
        case "wsd":
            return min(1.0, (1.0 - progress) / DECAY_SHARE)
        case "constant":
            return 1.0
        case _:
            raise ValueError(f"unknown schedule {schedule!r}: take one of {', '.join(SCHEDULES)}")
