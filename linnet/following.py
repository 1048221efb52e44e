"""What a process of torchrun's does that is not the first: compute its share, write and say nothing.

Why    One process has the lock, the rows, the checkpoints, the terminal. The others need the same model, plan and data.
How    `api.train` calls `follow`, while the first process goes through the same places: there they wait for each other.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from linnet import opening
from linnet.data.batches import Ahead
from linnet.model.loss import next_token_loss
from linnet.run import RunFolder
from linnet.training import loop
from linnet.training.checkpoint import load_checkpoint
from linnet.training.ranks import Ranks
from linnet.training.stop import StopSignals


def follow(request: opening.Request, *, folder: RunFolder, accept_changes: bool, ranks: Ranks) -> None:
    """Take part in the training that the first process leads, from the checkpoint that it has found."""
    place = ranks.told("")
    checkpoint = load_checkpoint(Path(place)) if place else None
    if checkpoint is not None and opening.is_done(request, checkpoint):
        return
    stop = StopSignals(ranks)
    ready = opening.open_session(
        request,
        folder=folder,
        checkpoint=checkpoint,
        accept_changes=accept_changes,
        mirror=None,
        stop=stop,
        say=lambda line: None,
        ranks=ranks,
    )
    with stop, contextlib.closing(Ahead(ready.batches)) as batches:
        loop.train(
            ready.state,
            config=ready.recipe.train,
            plan=ready.plan,
            batch=batches,
            loss=next_token_loss,
            looks=ready.looks(),
            ranks=ranks,
        )
