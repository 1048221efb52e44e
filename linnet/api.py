"""The Python interface: `train`, `load`, `prepare`. The command line calls the same functions.

What   `run = linnet.train("lines", data={"source": "data.txt"})`, `model = linnet.load("runs/lines")`.
Why    Notebooks and other programs need what the commands do, with the same keys.
How    `train` opens a session (`linnet.opening`) and hands it to the loop (`linnet.training.loop`):
       cli.train -> api.train -> loop.train -> backward().
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from linnet import files, opening
from linnet.data.batches import Ahead
from linnet.device import choose_device, keep_freed_memory
from linnet.errors import UsageError
from linnet.following import follow
from linnet.generate.decoder import Decoder
from linnet.generate.engine import Model
from linnet.generate.products import Precision
from linnet.mirror import Mirror, complete, restore
from linnet.model.chat_template import read_template
from linnet.model.loss import next_token_loss
from linnet.model.pretrained import load_model
from linnet.model.resolve import resolve_model
from linnet.preparing import prepare as prepare
from linnet.recipe import flatten, parse_overrides, read_recipe_values
from linnet.run import RunFolder
from linnet.show import show_end, show_finished, show_first_batch, show_plan, show_profile
from linnet.tokenizer import load_tokenizer
from linnet.track.card import write_card
from linnet.track.metrics import read_metrics
from linnet.track.report import write_report
from linnet.training import loop
from linnet.training.several import join
from linnet.training.stop import StopSignals

Part = Mapping[str, Any]
PRECISIONS: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float32,
    "int8": torch.float32,
}
"""What the weights are read into."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    dir: Path

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.dir / "metrics.jsonl")

    def load(self, *, precision: str = "fp32") -> Model:
        """The run's model, ready to write."""
        return load(self.dir, precision=precision)


def train(
    recipe: str,
    *,
    run: str | Path = "auto",
    data: Part | None = None,
    tokenizer: Part | None = None,
    model: Part | None = None,
    train: Part | None = None,
    sample: Part | None = None,
    track: Part | None = None,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
    mirror: str | Path | None = None,
    only: Literal["train", "dry-run", "profile"] = "train",
) -> Run:
    """Train a model, or go on where the run stopped.

    Args:
        recipe: a built-in name or the path of a .toml file.
        run: the run's folder; "auto" is runs/RECIPE.
        data, tokenizer, model, train, sample, track: keys of the recipe's parts, {"steps": 200}.
        overrides: the same as `KEY=VALUE` strings.
        accept_changes: go on although data, tokenizer or recipe have changed.
        mirror: a folder, say of a mounted drive, that gets a copy of each checkpoint; a run that is further there goes
            on from there.
        only: "dry-run" shows the settings and the first batch; "profile" where a step's time goes.

    Raises:
        LinnetError: what the input lacks, in one sentence; `linnet.errors` has the kinds.
        Stopped: Ctrl-C or SIGTERM; the state is saved.
    """
    parts = {
        "data": data,
        "tokenizer": tokenizer,
        "model": model,
        "train": train,
        "sample": sample,
        "track": track,
    }
    given = flatten({key: part for key, part in parts.items() if part is not None})
    request = opening.Request(recipe, parse_overrides(given) | parse_overrides(overrides))
    name = read_recipe_values(recipe)["name"]
    folder = RunFolder(Path("runs") / name if run == "auto" else Path(run))
    keep_freed_memory()
    if only != "train":
        return _look_only(request, folder=folder, only=only)

    with join() as ranks, contextlib.ExitStack() as held:
        if ranks.rank:
            follow(request, folder=folder, accept_changes=accept_changes, ranks=ranks)
            return Run(folder.root)
        held.enter_context(files.Lock(folder.lock))
        stop = StopSignals(ranks)
        if mirror is not None:
            restore(folder.root, Path(mirror), recipe=name, say=print)
        checkpoint = opening.newest_checkpoint(folder, request=request, say=print)
        ranks.told(str(checkpoint.path.absolute()) if checkpoint else "")
        if checkpoint is not None and opening.is_done(request, checkpoint):
            show_finished(folder, checkpoint)
            _redraw(folder)
            if mirror is not None:
                complete(folder.root, Path(mirror), step=checkpoint.step, say=print)
            return Run(folder.root)
        ready = opening.open_session(
            request,
            folder=folder,
            checkpoint=checkpoint,
            accept_changes=accept_changes,
            mirror=None if mirror is None else Mirror(folder.root, Path(mirror), say=print),
            stop=stop,
            say=print,
            ranks=ranks,
        )
        show_plan(ready, goes_on=checkpoint is not None)
        ready.begin(checkpoint)
        with stop, contextlib.closing(ready), contextlib.closing(Ahead(ready.batches)) as batches:
            loop.train(
                ready.state,
                config=ready.recipe.train,
                plan=ready.plan,
                batch=batches,
                loss=next_token_loss,
                looks=ready.looks(),
                ranks=ranks,
            )
        show_end(ready)
    return Run(folder.root)


def load(model: str | Path, *, precision: str = "fp32", together: bool = False) -> Model:
    """A model that is ready to write: `load("runs/mine").generate("Once upon a time")`.

    One that was trained on turns brings its template: its prompts are turns. A chat template that Linnet did not
    write is a program; it is not executed, and that is said.

    Args:
        model: a run, a model folder, or a name on the hub.
        precision: "fp32" or "bf16"; for writing only, "fp16" or "int8", weights of 16 or 8 bits.
        together: several texts will be written at once.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}, but must be one of {', '.join(PRECISIONS)}.")
    folder = resolve_model(model)
    network = load_model(folder).to(choose_device().value, PRECISIONS[precision])
    decoder = Decoder(network, precision=precision, together=together)
    if precision in ("fp16", "int8"):
        network.to(
            "meta"
        )  # The decoder has its own weights; the network would keep two or four times as much.
    template, is_foreign = read_template(folder)
    if is_foreign:
        print(
            f"{folder}: its chat template was not written by Linnet, so it is not executed, and a prompt is taken as "
            "it is.",
            file=sys.stderr,
        )
    tokenizer = load_tokenizer(str(folder))
    run = RunFolder(folder.parent)
    if folder != run.model:
        return Model(network, tokenizer, decoder=decoder, template=template)
    reads = run.recipe_values().get("data", {}).get("reads", "start")
    return Model(
        network, tokenizer, decoder=decoder, template=template, reads=reads, block_size=run.block_size()
    )


def _redraw(folder: RunFolder) -> None:
    """Report and card of a finished run: a kill or a full disk may have come between the last step and these."""
    for what, draw in (
        ("report.html", partial(write_report, folder.root, running=False)),
        ("The card", partial(write_card, folder.root, folder.model)),
    ):
        try:
            draw()
        except Exception as error:  # As in a training: what only shows the run is no reason to fail.
            print(f"{what} cannot be written: {error}", file=sys.stderr)


def _look_only(request: opening.Request, *, folder: RunFolder, only: str) -> Run:
    """--dry-run and --profile: what a training would do; the run's folder is neither made nor changed."""
    with join() as ranks:
        if only == "profile" and ranks.world > 1:
            raise UsageError("--profile looks at the steps of one process; leave out torchrun.")
        ready = opening.open_session(
            request,
            folder=folder,
            checkpoint=None,
            accept_changes=False,
            mirror=None,
            stop=StopSignals(ranks),
            say=print if ranks.rank == 0 else lambda line: None,
            ranks=ranks,
        )
        if ranks.rank == 0:
            show_plan(ready, goes_on=False)
        if ranks.rank == 0 and only == "dry-run":
            show_first_batch(ready)
        elif only == "profile":
            show_profile(ready)
    return Run(folder.root)
