"""R10: a step whose loss or gradients are not finite. The number advances, nothing else does; the rows are named."""

import json
import math
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linnet import api
from linnet.config import TrainConfig
from linnet.data.batches import Batch
from linnet.data.store import Store
from linnet.model.gpt2 import GPT2
from linnet.model.loss import next_token_loss
from tests.commands import Command, runner
from tests.training.test_loop import ROWS, Notes, new_plan, new_state, run

TINY = (
    *(
        "model.init_from=scratch",
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=16",
        "tokenizer.name=char",
    ),
    *("data.validation=0", "train.block_size=32", "train.batch_size=4", "sample.max_new_tokens=0"),
    *("train.precision=fp32", "train.warmup_steps=0"),
)
STEPS, MICRO = 40, 2  # Every second step is a bad one: 20.
POISON = "@"


class Bad:
    """next_token_loss with NaN or infinity at some micro-steps: in the loss, or in one element of one gradient."""

    def __init__(self, kind: str, *, places: set[int]) -> None:
        self.kind, self.places = kind, places
        self.rng = random.Random(kind)
        self.micro_step = -1
        self.hook: Any = None

    def __call__(self, model: GPT2, batch: Batch) -> Tensor:
        self.micro_step += 1
        if self.hook is not None:
            self.hook.remove()
            self.hook = None
        loss, number = next_token_loss(model, batch), self.rng.choice([math.nan, math.inf, -math.inf])
        if self.micro_step not in self.places:
            return loss
        if self.kind == "loss":
            return loss + number

        def spoil(gradient: Tensor) -> Tensor:
            spoiled = gradient.clone()
            spoiled.view(-1)[self.rng.randrange(spoiled.numel())] = number
            return spoiled

        self.hook = self.rng.choice([*model.parameters()]).register_hook(spoil)
        return loss


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_20_bad_steps_change_neither_weights_nor_moments(kind: str, optimizer: str) -> None:
    per_step, rng = ROWS // MICRO, random.Random(7)
    bad_at = {step: rng.randrange(per_step) for step in range(0, STEPS, 2)}
    state = new_state(optimizer)
    states: dict[int, dict[str, Tensor]] = {}

    def remember() -> None:
        if state.step not in states:
            tensors = state.model.state_dict() | state.optimizer.state()
            states[state.step] = {name: value.clone() for name, value in tensors.items()}

    notes = Notes(check_stop=remember)
    loss = Bad(kind, places={per_step * step + part for step, part in bad_at.items()})
    run(state, notes, plan=new_plan(steps=STEPS, micro_batch_size=MICRO), loss=loss)
    remember()
    assert state.step == STEPS
    assert state.skipped_in_a_row == 0
    for step in range(STEPS):
        same = [torch.equal(states[step][name], value) for name, value in states[step + 1].items()]
        assert all(same) if step in bad_at else not any(same), step
    assert len(notes.said) == len(bad_at) == 20
    for said, (step, part) in zip(notes.said, bad_at.items(), strict=True):
        rows = [MICRO * part, MICRO * part + 1] if kind == "loss" else [*range(ROWS)]
        assert said == f"step {step + 1} is skipped: the {kind} is not finite for rows {rows} of step {step}"
    for row in notes.rows:
        is_bad = row["step"] - 1 in bad_at
        assert math.isfinite(row["grad_norm"]) != (is_bad and kind == "gradient")
        assert math.isfinite(row["loss"]) != (is_bad and kind == "loss")


def test_the_optimizer_goes_on_as_if_the_bad_step_had_not_run() -> None:
    """The reference never sees the step; only the number, which the learning rate follows, has advanced."""
    skipping, reference = new_state(), new_state()
    config = TrainConfig(steps=5, warmup_steps=0, schedule="constant")
    run(skipping, plan=new_plan(steps=5), config=config, loss=Bad("loss", places={2}))
    run(reference, plan=new_plan(steps=2), config=config)
    reference.step = 3
    run(reference, plan=new_plan(steps=5), config=config)
    ours = skipping.model.state_dict() | skipping.optimizer.state()
    theirs = reference.model.state_dict() | reference.optimizer.state()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_four_in_a_row_and_again_four_do_not_end_the_training_and_are_counted_over_a_resume() -> None:
    bad = Bad("loss", places={0, 1, 2, 3, 5, 6, 7, 8})
    state = new_state()
    run(state, plan=new_plan(steps=7), loss=bad)
    assert state.skipped_in_a_row == 2
    other = new_state()
    other.load_numbers(json.loads(json.dumps(state.numbers())))
    run(other, plan=new_plan(steps=10), loss=bad)
    assert (other.step, other.skipped_in_a_row) == (10, 0)


def test_a_step_without_a_learned_token_is_no_bad_step() -> None:
    def loss(model: GPT2, batch: Batch) -> Tensor:
        batch.learn.zero_()
        return next_token_loss(model, batch)

    notes = run(new_state(), plan=new_plan(steps=2, micro_batch_size=3), loss=loss)
    assert notes.said == []
    assert [(row["loss"], row["grad_norm"]) for row in notes.rows] == [(0.0, 0.0)] * 2


def test_numbers_that_a_checkpoint_does_not_have_yet_keep_their_defaults() -> None:
    state = new_state()
    state.step, state.best_loss = 7, 1.5
    young = ("skipped_in_a_row", "most_rows", "loss_scale", "steps_at_scale")
    old = {key: value for key, value in state.numbers().items() if key not in young}
    other = new_state()
    other.load_numbers(json.loads(json.dumps(old)))
    assert other.numbers() == state.numbers()


# --- through the command ---


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capfd)


def poison(monkeypatch: pytest.MonkeyPatch, *, stop_at: int = 0) -> None:
    """The loss of a micro-batch that has the character POISON is not a number; a signal in micro-step `stop_at`."""
    seen: list[int] = []
    tokens: list[int] = []

    def loss(model: GPT2, batch: Batch) -> Tensor:
        seen.append(len(seen))
        if len(seen) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if not tokens:
            tokens.extend(Store.open(Path("store")).tokenizer().encode(POISON))
        is_bad = bool((batch.ids == tokens[0]).any())
        return next_token_loss(model, batch) + (math.nan if is_bad else 0.0)

    monkeypatch.setattr(api, "next_token_loss", loss)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl as a strict reader sees it, without what depends on the clock."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    rows = [
        json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {k: v for k, v in row.items() if k not in ("time_s", "tokens_per_s", "memory_gb")} for row in rows
    ]


def test_the_ids_that_are_named_can_be_left_out_and_a_resumed_run_is_the_same(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"Bird {number} sings {'la ' * (number % 5)}again." for number in range(40)]
    lines[7] += POISON
    (tmp_path / "data.txt").write_text("\n".join(lines))
    keys = (
        "lines",
        "data.source=data.txt",
        "data.prepared=store",
        *TINY,
        "train.epochs=2",
        "train.save_every=100",
    )
    keys = (*keys, "train.micro_batch_size=1")

    poison(monkeypatch)
    whole = command("train", *keys, "--run", "whole")
    assert whole.code == 0, whole.err
    named = re.findall(
        r"^step (\d+) is skipped: the loss is not finite for rows with the ids (.+)$", whole.err, re.M
    )
    assert len(named) == 2  # Once in each epoch.
    skipped = {int(step) for step, _ in named}
    assert {row["step"] for row in rows_of(tmp_path / "whole") if row["loss"] is None} == skipped

    poison(monkeypatch, stop_at=4 * (min(skipped) + 1))
    assert command("train", *keys, "--run", "run").code == 143
    poison(monkeypatch)
    assert command("train", *keys, "--run", "run").code == 0
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    for path in (tmp_path / "whole/checkpoints").rglob("*.safetensors"):
        last = tmp_path / "run" / path.relative_to(tmp_path / "whole")
        assert last.read_bytes() == path.read_bytes()

    (tmp_path / "bad.txt").write_text("\n".join({name for _, names in named for name in names.split(", ")}))
    keys = (
        "lines",
        "data.source=data.txt",
        "data.prepared=store",
        "data.drop=bad.txt",
        *TINY,
        "train.steps=1",
    )
    dropped = command("inspect", *keys, "--rows", "40", "--json").report
    assert POISON not in json.dumps(dropped["first"])
    assert 0 < dropped["dropped"]["listed in data.drop"] < 6


def test_of_text_the_documents_are_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    for number in range(3):
        words = "The bird sings a song. " * 12 + (POISON if number == 1 else "")
        (tmp_path / "notes" / f"{number}.txt").write_text(words)
    poison(monkeypatch)
    keys = ("data.source=notes", "data.prepared=store", "train.micro_batch_size=1", "train.epochs=1")
    done = command("train", "text", *keys, *TINY)
    assert done.code == 0, done.err
    (named,) = re.findall(r"^step \d+ is skipped: the loss is not finite for documents (.+)$", done.err, re.M)
    assert "2" in named.split(", ")


def test_five_in_a_row_exit_3_and_the_run_goes_on_from_its_last_checkpoint(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("The bird sings a song that it has heard. " * 40)
    train = ("train", "text", "data.source=notes.txt", *TINY, "train.save_every=100", "train.grad_clip=0")
    assert command(*train, "train.steps=3").code == 0
    diverged = command(*train, "train.steps=12", "train.learning_rate=1e30", "--accept-changes")
    assert diverged.code == 3, diverged.err
    # Step 4 still has a loss; its update is what ruins the weights.
    assert re.findall(r"^step (\d+) is skipped", diverged.err, re.M) == ["5", "6", "7", "8", "9"]
    last = diverged.err.splitlines()[-1]
    assert last.startswith(
        "linnet: The loss or the gradients were not finite in 5 steps in a row, up to step 9;"
    )
    assert "--accept-changes" in last
    run = tmp_path / "runs/text"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert [row["loss"] for row in rows_of(run)[-5:]] == [None] * 5
    again = command(*train, "train.steps=12", "train.learning_rate=1e-4", "--accept-changes")
    assert again.code == 0, again.err
    assert "skipped" not in again.err
    rows = rows_of(run)
    assert [row["step"] for row in rows] == [*range(1, 13)]
    assert all(row["loss"] for row in rows)
