"""The loop: what a step does, what it refuses, when it looks, and how it stops."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from linnet.config import TrainConfig
from linnet.data.batches import Batch
from linnet.errors import DivergedError, Stopped
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.loss import next_token_loss
from linnet.training.loop import MOST_SKIPPED, Looks, TrainState, train
from linnet.training.optim import make_optimizer
from linnet.training.plan import Plan

ROWS, TOKENS, VOCABULARY = 8, 16, 40


def batch_of(step: int) -> Batch:
    """Eight rows with very unequal numbers of learned tokens."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCABULARY, (ROWS, TOKENS + 1), generator=generator)
    learn = torch.arange(TOKENS)[None, :] >= torch.tensor([15, 1, 8, 14, 0, 15, 3, 12])[:, None]
    return Batch(
        ids=ids[:, :-1],
        targets=ids[:, 1:],
        learn=learn,
        positions=torch.arange(TOKENS).expand(ROWS, TOKENS),
        lengths=[[TOKENS]] * ROWS,
        weight=float(learn.sum()),
        tokens=ROWS * TOKENS,
    )


@dataclass
class Notes:
    """What the loop said and did while it ran."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    saves: list[tuple[int, bool]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    check_stop: Callable[[], None] = lambda: None

    def evaluate(self) -> tuple[float, int] | None:
        return (self.losses.pop(0), 100) if self.losses else None

    def looks(self) -> Looks:
        return Looks(
            evaluate=self.evaluate,
            sample=self.samples.append,
            log=self.rows.append,
            save=lambda state, best: self.saves.append((state.step, best)),
            say=self.said.append,
            check_stop=lambda: self.check_stop(),
            name_rows=lambda step, rows: f"rows {rows} of step {step}" if rows else "",
        )


def new_state(optimizer: str = "adamw", dropout: float = 0.0) -> TrainState:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=32, n_layer=2, n_head=2, dropout=dropout
    )
    model = GPT2(config, seed=1)
    return TrainState(model, make_optimizer(model, name=optimizer, weight_decay=0.1))


def new_plan(**changes: Any) -> Plan:
    settings = {
        "steps": 6,
        "batch_size": ROWS,
        "micro_batch_size": ROWS,
        "eval_every": 100,
        "save_every": 100,
    }
    return Plan(device="cpu", precision="fp32", block_size=TOKENS, **(settings | changes))


def run(
    state: TrainState,
    notes: Notes | None = None,
    *,
    plan: Plan | None = None,
    config: TrainConfig | None = None,
    loss: Callable[[Any, Any], Tensor] = next_token_loss,
) -> Notes:
    notes = notes or Notes()
    config = config or TrainConfig(steps=6, learning_rate=1e-2, warmup_steps=2)
    train(state, config=config, plan=plan or new_plan(), batch=batch_of, loss=loss, looks=notes.looks())
    return notes


def gradients_of_a_step(micro_batch_size: int) -> dict[str, Tensor]:
    """What the optimizer is given, by parameter name."""
    state, gradients = new_state(), {}
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    step = state.optimizer.step

    def record() -> None:
        gradients.update({name: parameter.grad.clone() for parameter, name in names.items()})
        step()

    state.optimizer.step = record
    run(state, plan=new_plan(steps=1, micro_batch_size=micro_batch_size))
    return gradients


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_splitting_a_batch_never_changes_the_update(micro_batch_size: int) -> None:
    whole, split = gradients_of_a_step(ROWS), gradients_of_a_step(micro_batch_size)
    assert len(whole) > 20
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    one_at_once = run(new_state())
    in_parts = run(new_state(), plan=new_plan(micro_batch_size=micro_batch_size))
    for ours, theirs in zip(one_at_once.rows, in_parts.rows, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_the_first_step_is_that_of_plain_torch() -> None:
    state, plain = new_state(), new_state()
    batch = batch_of(0)
    logits = plain.model.logits(plain.model(batch.ids))
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), reduction="none"
    )
    loss = (losses * batch.learn.flatten()).sum() / batch.learn.sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
    decay = [p for p in plain.model.parameters() if p.ndim >= 2]
    rest = [p for p in plain.model.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-2 / 3,
        betas=(0.9, 0.99),
    )
    adam.step()
    notes = run(
        state, plan=new_plan(steps=1), config=TrainConfig(steps=1, learning_rate=1e-2 / 3, warmup_steps=0)
    )
    row = notes.rows[0]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in plain.model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], parameter, rtol=1e-4, atol=1e-5)


def test_rows_have_the_promised_keys_and_count_real_and_learned_tokens() -> None:
    rows = run(new_state()).rows
    keys = "step time_s loss learning_rate grad_norm tokens learned_tokens tokens_per_s memory_gb"
    assert list(rows[0]) == keys.split()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["tokens"] == 6 * ROWS * TOKENS
    assert rows[-1]["learned_tokens"] == 6 * int(batch_of(0).weight)
    assert rows[0]["learning_rate"] < rows[2]["learning_rate"] == 1e-2


def test_it_evaluates_at_0_at_intervals_and_at_the_end_and_marks_the_best() -> None:
    notes = Notes(losses=[1.0, 4.0, 3.0, 3.5, 2.0])
    run(new_state(), notes, plan=new_plan(steps=7, eval_every=2))
    evaluations = [(row["step"], row["validation_loss"]) for row in notes.rows if "validation_loss" in row]
    # The untrained model at step 0 is looked at, but is never the best.
    assert evaluations == [(0, 1.0), (2, 4.0), (4, 3.0), (6, 3.5), (7, 2.0)]
    assert notes.saves == [(2, True), (4, True), (7, True)]
    assert notes.samples == [0, 2, 4, 6, 7]


def test_without_held_out_data_it_samples_and_saves_all_the_same() -> None:
    notes = run(new_state(), plan=new_plan(eval_every=3, save_every=4))
    assert notes.saves == [(4, False), (6, False)]
    assert notes.samples == [0, 3, 6]


def test_patience_ends_the_training_early_and_saves() -> None:
    notes = Notes(losses=[9.0, 3.0, 4.0, 4.0, 4.0, 4.0])
    config = TrainConfig(steps=6, patience=2)
    state = new_state()
    run(state, notes, plan=new_plan(eval_every=1), config=config)
    assert (state.step, state.best_step, state.best_loss) == (3, 1, 3.0)
    assert notes.saves[-1] == (3, False)


def test_a_step_without_finite_gradient_is_skipped_as_if_it_had_not_run() -> None:
    def loss(model: GPT2, batch: Batch) -> Tensor:
        bad = torch.equal(batch.ids, batch_of(2).ids)
        return next_token_loss(model, batch) * (math.nan if bad else 1.0)

    state = new_state()
    before: dict[str, Tensor] = {}

    def remember() -> None:
        if state.step == 2:
            tensors = state.model.state_dict() | state.optimizer.state()
            before.update({name: value.clone() for name, value in tensors.items()})

    notes = Notes(check_stop=remember)
    run(state, notes, plan=new_plan(steps=3), loss=loss)
    after = state.model.state_dict() | state.optimizer.state()
    assert state.step == 3
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "step 3" in notes.said[0]


def test_five_such_steps_in_a_row_end_with_exit_code_3() -> None:
    state = new_state()
    with pytest.raises(DivergedError, match="5 steps in a row") as caught:
        run(state, loss=lambda model, batch: next_token_loss(model, batch) * math.inf)
    assert caught.value.exit_code == 3
    assert state.step == MOST_SKIPPED


@pytest.mark.parametrize("micro_step", [0, 1, 5, 11])
def test_a_signal_is_seen_between_micro_batches_and_the_last_finished_step_is_saved(micro_step: int) -> None:
    calls = 0

    def check_stop() -> None:
        nonlocal calls
        if calls == micro_step:
            raise Stopped("stopped", signal_number=15)
        calls += 1

    uninterrupted, stopped = new_state(), new_state()
    plan = new_plan(micro_batch_size=2)
    run(uninterrupted, plan=plan)
    notes = Notes(check_stop=check_stop)
    with pytest.raises(Stopped) as caught:
        run(stopped, notes, plan=plan)
    assert caught.value.exit_code == 143
    assert stopped.step == micro_step // 4
    assert notes.saves == [(micro_step // 4, False)]
    run(stopped, plan=plan)
    for name, parameter in uninterrupted.model.state_dict().items():
        assert torch.equal(stopped.model.state_dict()[name], parameter)


def test_a_signal_in_an_evaluation_repeats_the_evaluation_when_it_goes_on() -> None:
    state = new_state()
    notes = Notes(losses=[5.0, 4.0])
    evaluate = notes.evaluate

    def interrupted() -> tuple[float, int] | None:
        if state.step == 3:
            raise Stopped("stopped", signal_number=2)
        return evaluate()

    notes.evaluate = interrupted  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        run(state, notes, plan=new_plan(eval_every=3))
    assert notes.saves == [(3, False)]
    assert not state.evaluated
    again = Notes(losses=[4.0, 3.0])
    run(state, again, plan=new_plan(eval_every=3))
    assert [row["step"] for row in again.rows if "validation_loss" in row] == [3, 6]


def test_dropout_is_the_same_after_a_resume() -> None:
    def stop_at(step: int) -> Callable[[], None]:
        def check() -> None:
            if state.step == step:
                raise Stopped("stopped", signal_number=15)

        return check

    whole, state = new_state(dropout=0.2), new_state(dropout=0.2)
    run(whole)
    with pytest.raises(Stopped):
        run(state, Notes(check_stop=stop_at(3)))
    torch.manual_seed(999)  # Another process has another global generator.
    run(state)
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(state.model.state_dict()[name], parameter)


def test_numbers_survive_json() -> None:
    state = new_state()
    state.step, state.tokens = 7, 123
    numbers = state.numbers()
    assert numbers["best_loss"] == "inf"
    other = new_state()
    other.load_numbers(numbers)
    assert other.numbers() == numbers
    assert other.best_loss == math.inf
