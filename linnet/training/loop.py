"""The training loop, the only one there is.

What   `train(state, ...)` repeats: learning rate, batch, forward and backward, clip, check, update; then it looks
       (metrics, evaluation, samples, checkpoints).
Why    Pre-training, fine-tuning, chat and LoRA differ in the initial weights, the batches, the loss and in which
       parameters require a gradient. All of these are handed in. The loop has no modes.
How    The mathematics stands between the two banners. Whatever is below the second banner may be deleted
       without changing one bit of the model.

Shapes: B rows of a step, T tokens of a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.profiler import record_function

from linnet.config import TrainConfig
from linnet.device import autocast, memory_gb
from linnet.errors import DivergedError, Stopped
from linnet.training.optim import Optimizer
from linnet.training.plan import Plan
from linnet.training.schedule import learning_rate

MOST_SKIPPED = 5  # Steps in a row without a finite gradient after which the training has diverged.


class Batch(Protocol):
    """What the loop needs of a batch; `linnet.data.batches.Batch` is one."""

    @property
    def ids(self) -> Tensor: ...  # [B, T]
    @property
    def weight(self) -> float: ...  # Learned tokens of the whole step, over all ranks.
    @property
    def tokens(self) -> int: ...  # Real tokens of the whole step, over all ranks.
    def rows(self, start: int, stop: int) -> Self: ...
    def to(self, device: str) -> Self: ...


@dataclass
class TrainState:
    """Everything that a step changes; a checkpoint holds all of it."""

    model: torch.nn.Module
    optimizer: Optimizer
    step: int = 0
    """Finished steps."""
    evaluated: bool = False
    """Whether the evaluation at `step` is done (or none is due)."""
    time_s: float = 0.0
    """Seconds of training: evaluation, saving and stops are left out."""
    tokens: int = 0
    learned_tokens: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    stale_evaluations: int = 0
    """Evaluations since the best."""
    skipped_in_a_row: int = 0
    """Steps without a finite gradient, up to now."""

    def numbers(self) -> dict[str, Any]:
        """All but the tensors, for a checkpoint; infinity, which JSON lacks, as a string."""
        values = {key: value for key, value in vars(self).items() if key not in ("model", "optimizer")}
        return values | {"best_loss": str(self.best_loss)}

    def load_numbers(self, values: Mapping[str, Any]) -> None:
        """Put back what `numbers` gave."""
        for key in self.numbers():
            setattr(self, key, float(values[key]) if key == "best_loss" else values[key])


@dataclass(frozen=True)
class Looks:
    """What the loop shows of itself; nothing here changes the training."""

    evaluate: Callable[[], tuple[float, int] | None]
    """Held-out loss and the number of tokens it was measured on; None where nothing is held out."""
    sample: Callable[[int], None]
    """Writes down what the model says at a step."""
    log: Callable[[dict[str, Any]], None]
    """Takes a row of metrics.jsonl."""
    save: Callable[[TrainState, bool], None]
    """Saves a checkpoint; the flag says whether it is the best so far."""
    say: Callable[[str], None]
    """Takes a line for the user."""
    check_stop: Callable[[], None]
    """Raises Stopped after a signal."""


def train(
    state: TrainState,
    *,
    config: TrainConfig,
    plan: Plan,
    batch: Callable[[int], Batch],
    loss: Callable[[Any, Any], Tensor],
    looks: Looks,
) -> None:
    """Train until `plan.steps` steps are done, or until `config.patience` evaluations bring no new best.

    Args:
        batch: the rows of a step, a pure function of its number.
        loss: the SUM of the loss over the learned tokens of a micro-batch; the loop divides once by the
            step's weight, so that splitting a batch differently never changes the update beyond rounding.

    Raises:
        Stopped: a signal came; the last finished step is saved.
        DivergedError: five steps in a row had no finite gradient.
    """
    model, optimizer = state.model, state.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        _look(state, config=config, plan=plan, looks=looks)
        while not is_finished(state, config=config, plan=plan):
            started = time.perf_counter()
            # ================================ the mathematics ================================
            rate = learning_rate(
                state.step,
                steps=plan.steps,
                peak=config.learning_rate,
                warmup_steps=config.warmup_steps,
                schedule=config.schedule,
            )
            optimizer.set_learning_rate(rate)
            with record_function("batch"):
                step_batch = batch(state.step)
            loss_sum = torch.zeros((), device=plan.device)
            for start in range(0, len(step_batch.ids), plan.micro_batch_size):
                looks.check_stop()
                micro_batch = step_batch.rows(start, start + plan.micro_batch_size).to(plan.device)
                # Dropout depends on (seed, step, row) alone, so that a resumed run draws the same.
                torch.manual_seed(hash((config.seed, state.step, start)) & 0xFFFF_FFFF)
                with record_function("forward"), autocast(plan.precision, plan.device):
                    micro_loss = loss(model, micro_batch)
                with record_function("backward"):
                    (micro_loss / step_batch.weight).backward()  # type: ignore[no-untyped-call]
                loss_sum += micro_loss.detach()
            with record_function("clip"):
                limit = config.grad_clip or math.inf
                grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True))
            step_loss = float(loss_sum) / step_batch.weight
            finite = math.isfinite(step_loss) and math.isfinite(grad_norm)
            if finite:
                with record_function("update"):
                    optimizer.step()
            optimizer.zero_grad()
            # ============================== from here on it only looks ========================
            seconds = time.perf_counter() - started
            state.step += 1
            state.evaluated = False
            state.time_s += seconds
            state.tokens += step_batch.tokens
            state.learned_tokens += int(step_batch.weight)
            state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1
            if state.step % config.log_every == 0 or state.step == plan.steps or not finite:
                looks.log(
                    {
                        "step": state.step,
                        "time_s": round(state.time_s, 6),
                        "loss": step_loss,
                        "learning_rate": rate,
                        "grad_norm": grad_norm,
                        "tokens": state.tokens,
                        "learned_tokens": state.learned_tokens,
                        "tokens_per_s": round(step_batch.tokens / seconds, 1),
                        "memory_gb": round(memory_gb(plan.device), 3),
                    }
                )
            if not finite:
                _say_skipped(state, looks)
            _look(state, config=config, plan=plan, looks=looks)
    except Stopped:
        optimizer.zero_grad()
        looks.save(state, False)
        raise


def is_finished(state: TrainState, *, config: TrainConfig, plan: Plan) -> bool:
    """Whether all steps are done or the evaluations have long brought nothing new."""
    return state.step >= plan.steps or (
        config.patience != "off" and state.stale_evaluations >= config.patience
    )


def _look(state: TrainState, *, config: TrainConfig, plan: Plan, looks: Looks) -> None:
    """Evaluate and save where that is due at `state.step`.

    Step 0 is evaluated as the point to compare with; it never counts as the best.
    """
    if state.evaluated:
        return
    is_best = False
    if state.step % plan.eval_every == 0 or state.step == plan.steps:
        is_best = _evaluate(state, looks)
    state.evaluated = True
    due = state.step > 0 and state.step % plan.save_every == 0
    if due or is_best or is_finished(state, config=config, plan=plan):
        looks.save(state, is_best)


def _evaluate(state: TrainState, looks: Looks) -> bool:
    """One evaluation with its row and its samples; returns whether it is the best so far.

    Both may raise Stopped, so the row and the best wait for them: a resumed run does all of it again, once.
    """
    result = looks.evaluate()
    looks.sample(state.step)
    is_best = False
    if result is not None:
        validation_loss, validation_tokens = result
        looks.log(
            {
                "step": state.step,
                "time_s": round(state.time_s, 6),
                "validation_loss": validation_loss,
                "validation_tokens": validation_tokens,
            }
        )
        is_best = state.step > 0 and validation_loss < state.best_loss
        if is_best:
            state.best_loss, state.best_step, state.stale_evaluations = validation_loss, state.step, 0
        elif state.step > 0:
            state.stale_evaluations += 1
    return is_best


def _say_skipped(state: TrainState, looks: Looks) -> None:
    """A step without a finite gradient left the weights alone; five in a row end the training."""
    if state.skipped_in_a_row < MOST_SKIPPED:
        looks.say(f"step {state.step}: the loss or a gradient is not finite; the step is skipped")
        return
    raise DivergedError(
        f"The loss or the gradients were not finite in {MOST_SKIPPED} steps in a row, up to step {state.step}; "
        "start another run (--run) with a lower train.learning_rate or train.precision=fp32, or go on from the last "
        "checkpoint with these and --accept-changes."
    )
