"""Linnet as a candidate: the real loop, with looks that do nothing but count the steps.

Why    What is measured has to be what a user gets: the same session, batches, plan and loop as `linnet train`, not a
       copy of the step that could be kept fast by leaving something out.
How    `train_in_turns(turns, recipe, overrides, folder=...)` in the process of a candidate (turns.py).
"""

import dataclasses
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turns import Turns, say

from linnet.errors import Stopped
from linnet.model.loss import next_token_loss
from linnet.opening import Request, open_session
from linnet.session import Session
from linnet.training import loop
from linnet.training.stop import StopSignals


def open_quietly(recipe: str, overrides: Mapping[str, Any], *, folder: Path) -> Session:
    """The session that `linnet train RECIPE KEY=VALUE ...` would open; no run folder is written."""
    from linnet.run import RunFolder

    return open_session(
        Request(recipe, overrides),
        folder=RunFolder(folder),
        checkpoint=None,
        accept_changes=False,
        mirror=None,
        stop=StopSignals(),
        say=say,
    )


def train_in_turns(turns: Turns, recipe: str, overrides: Mapping[str, Any], *, folder: Path) -> None:
    """Train in a turn that has begun, until all steps are done or no turn is left."""
    session = open_quietly(recipe, overrides, folder=folder)
    for key, choice in session.plan.choices.items():
        say(f"{key}: {choice.value} ({choice.reason})")
    before = {"tokens": 0, "learned_tokens": 0}

    def log(row: dict[str, Any]) -> None:
        if "loss" not in row:
            return
        counts = {key: row[key] - before[key] for key in before}
        before.update((key, row[key]) for key in before)
        if not turns.step(loss=row["loss"], **counts):
            raise Stopped("the benchmark has seen enough", signal_number=signal.SIGTERM)

    looks = dataclasses.replace(
        session.looks(),
        evaluate=lambda: None,
        sample=lambda step: None,
        log=log,
        save=lambda state, is_best: None,
        say=say,
    )
    try:
        loop.train(
            session.state,
            config=session.recipe.train,
            plan=session.plan,
            batch=session.batches,
            loss=next_token_loss,
            looks=looks,
        )
    except Stopped:
        return
