"""What a training says on the terminal: the table at its start, the first batch, the profile, the end.

Why    A person must see what was chosen for them, what is being learned, and what to type next.
How    Rich tables on stdout; in a log file they are plain text.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.profiler import ProfilerActivity, profile

from linnet.generate.text import Characters
from linnet.model.lora import adapter_state
from linnet.model.loss import next_token_loss
from linnet.training.loop import Looks, train

if TYPE_CHECKING:
    from linnet.data.batches import Batch
    from linnet.run import RunFolder
    from linnet.session import Session
    from linnet.tokenizer import Tokenizer
    from linnet.training.checkpoint import Checkpoint

SHOWN_ROWS = 3
PROFILED_STEPS = 5
PHASES = ("batch", "forward", "backward", "clip", "update")  # The loop's own labels.


def show_plan(session: Session, *, goes_on: bool) -> None:
    """One table of device, precision, batch and memory with the reasons."""
    console = Console()
    verb = f"goes on at step {session.state.step:,} in" if goes_on else "trains in"
    model, counts = session.model.config, session.store.manifest["counts"]
    console.print(f"{session.recipe.name} {verb} {session.folder.root}", highlight=False, markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [
        (
            "model",
            f"{model.parameters:,} parameters",
            f"from {session.recipe.model.init_from}: "
            f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, {model.n_positions} positions",
        ),
        *_adapters(session),
        (
            "data",
            f"{counts['tokens']:,} tokens",
            f"{counts['examples']:,} examples in {session.store.folder}",
        ),
        ("held out", *_held_out(session)),
    ]
    rows += [(key, str(choice.value), choice.reason) for key, choice in session.plan.choices.items()]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _adapters(session: Session) -> list[tuple[str, str, str]]:
    """The row of a run with LoRA."""
    lora = session.recipe.model.lora
    if not lora.rank:
        return []
    trained = sum(tensor.numel() for tensor in adapter_state(session.model).values())
    kept = "int8" if lora.base == "int8" else session.plan.precision
    reason = f"rank {lora.rank} on {', '.join(lora.targets)}; only they are trained, the model's matrices are in {kept}"
    return [("adapters", f"{trained:,} parameters", reason)]


def _held_out(session: Session) -> tuple[str, str]:
    validation = session.store.validation
    if validation is None:
        return "nothing", "the model is not evaluated, its last state is kept"
    return f"{validation.manifest['counts']['tokens']:,} tokens", "the best model on them is kept"


def show_first_batch(session: Session) -> None:
    """Decode the first rows of the first batch: green is learned, the rest is read only."""
    batch = session.batches(0)
    console = Console()
    rows, size = batch.ids.shape
    shown = min(rows, SHOWN_ROWS)
    console.print(
        f"The first batch: {rows} rows of {size}, {batch.tokens:,} tokens, {batch.weight:,.0f} of them learned. "
        f"{'Its only row' if rows == 1 else f'Its first {shown} rows'} (green is learned, ⏹ is end-of-text):",
        highlight=False,
    )
    for row in range(shown):
        console.print(f"row {row + 1}", style="bold")
        console.print(_row_text(batch, row, session.tokenizer))


def _row_text(batch: Batch, row: int, tokenizer: Tokenizer) -> Text:
    """What is to be predicted in a row. A character of several tokens has the style of the last of them."""
    text, start = Text(), 0
    for length in batch.lengths[row]:
        targets = batch.targets[row, start : start + length].tolist()
        learned = batch.learn[row, start : start + length].tolist()
        characters, style = Characters(tokenizer), ""
        for token, learn in zip(targets, learned, strict=True):
            style = "green" if learn else "dim"
            if token == tokenizer.end_of_text:
                text.append(characters.finish() + "⏹\n", style=style)
                characters = Characters(tokenizer)
            else:
                text.append(characters.feed(token), style=style)
        text.append(characters.finish(), style=style)
        start += length
    return text


def show_profile(session: Session) -> None:
    """Run the loop for a few steps under torch's profiler: the phases of a step, then the longest operations."""

    def run_until(step: int) -> None:
        train(
            session.state,
            config=session.recipe.train,
            plan=replace(session.plan, steps=step),
            batch=session.batches,
            loss=next_token_loss,
            looks=Looks(name_rows=session.batches.name_rows),
        )

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # The profiler's own lines on stderr.
    run_until(1)  # The first step allocates and chooses kernels.
    on_card = session.plan.device == "cuda"  # There the processor only hands out the work.
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as profiler:
        run_until(1 + PROFILED_STEPS)
    whole = attrgetter("device_time_total" if on_card else "cpu_time_total")
    own = attrgetter("self_device_time_total" if on_card else "self_cpu_time_total")
    events = profiler.key_averages()
    rows = [(event, whole(event)) for event in events if event.key in PHASES]
    total = sum(time_us for _, time_us in rows)
    operations = sorted(events, key=own, reverse=True)
    rows += [(event, own(event)) for event in operations if event.key not in PHASES][:15]
    table = Table("phase or operation", "calls", "ms a step", "share", box=None, pad_edge=False)
    for event, time_us in rows:
        table.add_row(
            event.key,
            f"{event.count / PROFILED_STEPS:g}",
            f"{time_us / PROFILED_STEPS / 1000:.2f}",
            f"{time_us / total:.0%}",
        )
    Console().print(table)


def show_finished(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Why nothing is left to do, and what to type for more."""
    recipe, stale = checkpoint.state["recipe"]["train"], checkpoint.state["loop"]["stale_evaluations"]
    early = (
        f", ended early after {stale} evaluations without a new best" if stale == recipe["patience"] else ""
    )
    length = "train.epochs" if "epochs" in recipe else "train.steps"
    print(f"{folder.root} is finished: {checkpoint.step:,} steps{early}. For more, set a larger {length}.")


def show_end(session: Session) -> None:
    """Where everything lies and what to type next."""
    root, state = session.folder.root, session.state
    best = (
        f", best validation loss {state.best_loss:.4f} at step {state.best_step:,}" if state.best_step else ""
    )
    print(
        f"Done: {state.step:,} steps{best}. {root}/model opens in transformers; {root}/report.html shows the curves."
    )
    address = f"./{root}" if str(root).startswith("-") else str(root)
    print(f'Next: linnet generate {shlex.quote(address)} "..."')
