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
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.profiler import record_function

from linnet.config import TrainConfig
from linnet.device import autocast, memory_gb
from linnet.errors import DivergedError, OutOfMemoryError, Stopped
from linnet.model.lora import load_trained, trained_state
from linnet.training.micro_batches import MicroBatches
from linnet.training.optim import Optimizer, clip
from linnet.training.plan import Plan
from linnet.training.ranks import ALONE, Ranks
from linnet.training.schedule import learning_rate

MOST_SKIPPED = 5  # Steps in a row without a finite gradient after which the training has diverged.
# As torch.amp.GradScaler: halve at an overflow, double after 2,000 finite steps. Powers of two change no digit.
FIRST_LOSS_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000


class Batch(Protocol):
    """What the loop needs of a batch; `linnet.data.batches.Batch` is one."""

    @property
    def ids(self) -> Tensor: ...  # [B, T]
    @property
    def weight(self) -> float: ...  # Learned tokens of the whole step, over all ranks.
    @property
    def tokens(self) -> int: ...  # Real tokens of the whole step, over all ranks.
    def rows(self, start: int, stop: int) -> Self: ...  # Any start and stop, as of a list.
    def to(self, device: str) -> Self: ...


@dataclass
class TrainState:
    """Everything that a step changes; a checkpoint holds all of it."""

    model: torch.nn.Module
    optimizer: Optimizer
    masters: dict[str, Tensor] = field(default_factory=dict)
    """The fp32 weights by name that the optimizer keeps elsewhere; {} where those of the model are the masters."""
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
    """Steps without a finite gradient, up to now; overflows of fp16 that a smaller loss scale mends do not count."""
    most_rows: int | None = None
    """Rows that fit into memory at once, once more did not; None as long as none ran out."""
    loss_scale: float = FIRST_LOSS_SCALE
    """fp16 only: gradients are computed so many times larger, so that small ones do not vanish."""
    steps_at_scale: int = 0
    """fp16 only: finite steps since the loss scale changed."""

    def weights(self) -> dict[str, Tensor]:
        """What is trained, in fp32 by name (a tied weight once): the one source of checkpoints and model/."""
        return trained_state(self.model) | self.masters

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put back what `weights` gave."""
        load_trained(self.model, weights)
        for name, master in self.masters.items():
            master.detach().copy_(weights[name])

    def numbers(self) -> dict[str, Any]:
        """All but the tensors, for a checkpoint; infinity, which JSON lacks, as a string."""
        tensors = ("model", "optimizer", "masters")
        values = {key: value for key, value in vars(self).items() if key not in tensors}
        return values | {"best_loss": str(self.best_loss)}

    def load_numbers(self, values: Mapping[str, Any]) -> None:
        """Put back what `numbers` gave. A number that is younger than the checkpoint keeps its default."""
        for key in self.numbers().keys() & values.keys():
            setattr(self, key, float(values[key]) if key == "best_loss" else values[key])


@dataclass(frozen=True)
class Looks:
    """What the loop shows of itself; nothing here changes the training. Left out, it shows nothing."""

    evaluate: Callable[[], tuple[float, int] | None] = lambda: None
    """Held-out loss and the number of tokens it was measured on; None where nothing is held out."""
    sample: Callable[[int], None] = lambda step: None
    """Writes down what the model says at a step."""
    log: Callable[[dict[str, Any]], None] = lambda row: None
    """Takes a row of metrics.jsonl."""
    save: Callable[[TrainState, bool], None] = lambda state, is_best: None
    """Saves a checkpoint; the flag says whether it is the best so far."""
    say: Callable[[str], None] = print
    """Takes a line for the user."""
    check_stop: Callable[[], None] = lambda: None
    """Raises Stopped after a signal."""
    name_rows: Callable[[int, list[int]], str] = lambda step, rows: ""
    """What a person calls these rows of a step's batch."""


def train(
    state: TrainState,
    *,
    config: TrainConfig,
    plan: Plan,
    batch: Callable[[int], Batch],
    loss: Callable[[Any, Any], Tensor],
    looks: Looks,
    ranks: Ranks = ALONE,
) -> None:
    """Train until `plan.steps` steps are done, or until `config.patience` evaluations bring no new best.

    Args:
        batch: this rank's rows of a step, a pure function of its number.
        loss: the SUM of the loss over the learned tokens of a micro-batch; the loop divides once by the
            step's weight, so that splitting a batch differently never changes the update beyond rounding.

    Raises:
        Stopped: a signal came; the last finished step is saved.
        DivergedError: five steps in a row had no finite gradient.
        OutOfMemoryError: a single row does not fit; one process alone has saved the last finished step.
    """
    model, optimizer = state.model, state.optimizer
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
            weight = max(step_batch.weight, 1.0)
            loss_scale = state.loss_scale if plan.precision == "fp16" else 1.0  # Gradients keep their digits.
            rows = min(plan.micro_batch_size, state.most_rows or plan.micro_batch_size)
            micro_batches = MicroBatches(
                step_batch,
                size=rows,
                device=plan.device,
                forget=optimizer.zero_grad,
                repeats=not ranks.lockstep,
            )
            for micro_batch in micro_batches:
                looks.check_stop()
                # Dropout depends on (seed, step, row) alone, so that a resumed run draws the same.
                torch.manual_seed(
                    hash((config.seed, state.step, ranks.rank, micro_batches.start)) & 0xFFFF_FFFF
                )
                with micro_batches.watch() as losses:
                    with record_function("forward"), autocast(plan.precision, plan.device):
                        losses.append(loss(model, micro_batch))
                    with record_function("backward"):
                        (losses[-1] * (loss_scale / weight)).backward()  # type: ignore[no-untyped-call]
            loss_sum = micro_batches.loss()
            with record_function("clip"):
                gradients = [p.grad for p in optimizer.parameters() if p.grad is not None]
                ranks.sum_([loss_sum, *gradients])
                if loss_scale != 1.0:
                    torch._foreach_div_(gradients, loss_scale)
                grad_norm, step_loss = clip(gradients, loss_sum / weight, limit=config.grad_clip or math.inf)
            finite = math.isfinite(step_loss) and math.isfinite(grad_norm)
            if finite:
                with record_function("update"):
                    optimizer.step()
            optimizer.zero_grad()
            gradients.clear()  # Or this list would keep them all through the next step's forward pass.
            # ============================== from here on it only looks ========================
            seconds = time.perf_counter() - started
            state.step += 1
            state.evaluated = False
            state.time_s += seconds
            state.tokens += step_batch.tokens
            state.learned_tokens += int(step_batch.weight)
            _keep_memory(state, fitted=ranks.least(micro_batches.size), asked=rows, looks=looks)
            is_overflow = plan.precision == "fp16" and _adapt_loss_scale(state, step_loss, grad_norm)
            if not is_overflow:
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
            if not finite and not is_overflow:
                _say_skipped(state, micro_batches, looks=looks, ranks=ranks)
            _look(state, config=config, plan=plan, looks=looks)
    except Stopped:
        optimizer.zero_grad()
        looks.save(state, False)
        raise
    except OutOfMemoryError:
        # Other ranks would not save with this one; a run that has not begun stays free to take other keys.
        if ranks.world == 1 and state.step > 0:
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


def _keep_memory(state: TrainState, *, fitted: int, asked: int, looks: Looks) -> None:
    """Remember what did not fit on any rank, so that no later step, and no later start, tries it again."""
    if fitted < asked:
        state.most_rows = fitted
        looks.say(
            f"step {state.step}: {asked} rows at once did not fit into memory; the step was done again with "
            f"{state.most_rows}, and so are all that follow (the batch stays as it is)"
        )


def _adapt_loss_scale(state: TrainState, step_loss: float, grad_norm: float) -> bool:
    """The scale of the next step (fp16). Returns whether this one overflowed, which a smaller scale mends."""
    if not math.isfinite(step_loss):
        return False  # It was computed before any scaling.
    if math.isfinite(grad_norm):
        state.steps_at_scale += 1
        if state.steps_at_scale == STEPS_TO_DOUBLE:
            state.loss_scale, state.steps_at_scale = 2 * state.loss_scale, 0
        return False
    is_overflow = state.loss_scale > 1.0
    if is_overflow:
        state.loss_scale, state.steps_at_scale = state.loss_scale / 2, 0
    return is_overflow


def _say_skipped(state: TrainState, micro_batches: MicroBatches[Any], *, looks: Looks, ranks: Ranks) -> None:
    """A step without a finite gradient left the weights alone; five in a row end the training.

    Only a loss tells which micro-batches were to blame; where all are finite, every row of the step is named.
    """
    for what, rows in (
        ("loss is", micro_batches.not_finite()),
        ("gradient is", micro_batches.rows()),
    ):
        names = [name for name in ranks.gather(looks.name_rows(state.step - 1, rows)) if name]
        if names:
            looks.say(f"step {state.step} is skipped: the {what} not finite for {' and '.join(names)}")
            break
    if state.skipped_in_a_row < MOST_SKIPPED:
        return
    raise DivergedError(
        f"The loss or the gradients were not finite in {MOST_SKIPPED} steps in a row, up to step {state.step}; "
        "start another run (--run) with a lower train.learning_rate or train.precision=fp32, or go on from the last "
        "checkpoint with these and --accept-changes."
    )
