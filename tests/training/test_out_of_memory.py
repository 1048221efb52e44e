"""R11: memory runs out in a step. Fewer rows at once, the same step again, the same update; else exit 5 with advice."""

import gc
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from linnet import api, session
from linnet.data.batches import Batch
from linnet.errors import OutOfMemoryError, is_out_of_memory
from linnet.model.gpt2 import GPT2
from linnet.model.loss import next_token_loss
from tests.commands import Command, runner
from tests.training.test_loop import ROWS, TOKENS, Notes, new_plan, new_state, run
from tests.warm import Warm

Loss = Callable[[GPT2, Batch], Tensor]
TOO_MUCH = 1 << 50  # bytes
TINY = (
    *("data.source=text.txt", "data.prepared=store", "data.validation=0", "tokenizer.name=char"),
    *("model.n_layer=2", "model.n_head=2", "train.precision=fp32", "sample.max_new_tokens=0"),
)


def run_out(kind: int) -> None:
    """What a card, Python and the system's allocator do; the last for real."""
    if kind == 0:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    if kind == 1:
        raise MemoryError
    torch.empty(TOO_MUCH, dtype=torch.uint8)


class _FailingBackward(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int) -> Tensor:
        ctx.kind = kind
        return x.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None]:
        run_out(ctx.kind)
        return None, None


class Failing:
    """next_token_loss that runs out of memory in the micro-steps `at` (from 0), somewhere in forward or backward.

    Attributes:
        tried: rows of each micro-step so far.
        kept: what the modules gave in the failed micro-steps.
    """

    def __init__(self, at: set[int], *, seed: int = 0) -> None:
        self.at, self.rng = at, random.Random(seed)
        self.tried: list[int] = []
        self.kept: list[StorageWeakRef] = []

    def __call__(self, model: GPT2, batch: Batch) -> Tensor:
        self.tried.append(len(batch.ids))
        if len(self.tried) - 1 not in self.at:
            return next_token_loss(model, batch)
        kind, in_forward = self.rng.randrange(3), self.rng.random() < 0.5
        modules = [module for block in model.h for module in block.modules() if not list(module.children())]
        failing = self.rng.choice([m for m in modules if not isinstance(m, torch.nn.Dropout)])

        def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
            self.kept.append(StorageWeakRef(output.untyped_storage()))

        def fail(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            if in_forward:
                run_out(kind)
            return _FailingBackward.apply(output, kind)  # type: ignore[no-any-return, no-untyped-call]

        handles = [module.register_forward_hook(keep) for module in model.modules()]
        handles.append(failing.register_forward_hook(fail))
        try:
            return next_token_loss(model, batch)
        finally:
            for handle in handles:
                handle.remove()


def steps_of(
    loss: Loss, *, rows: int = ROWS, optimizer: str = "adamw", steps: int = 1
) -> tuple[Any, Notes, Any]:
    """(state, notes, the gradients by name that the optimizer was given last)."""
    state = new_state(optimizer)
    given: dict[str, Tensor] = {}
    step = state.optimizer.step

    def record() -> None:
        given.update(
            {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
        )
        step()

    state.optimizer.step = record  # type: ignore[method-assign]
    notes = run(state, plan=new_plan(steps=steps, micro_batch_size=rows), loss=loss)
    return state, notes, given


@pytest.mark.parametrize(
    "places",
    [12, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(900)])],
)
def test_the_step_is_done_again_with_half_the_rows_and_the_same_gradients(places: int) -> None:
    rng = random.Random(places)
    undisturbed: dict[Any, Any] = {}
    for seed in range(places):
        # Odd sizes leave a short micro-batch at the end, 11 is more rows than there are; the last may fail as well.
        rows, optimizer = rng.choice([2, 3, 4, 5, 7, 8, 11]), rng.choice(["adamw", "muon"])
        failing = Failing({rng.randrange(-(-ROWS // rows))}, seed=seed)
        if (rows, optimizer) not in undisturbed:
            undisturbed[rows, optimizer] = steps_of(next_token_loss, rows=rows, optimizer=optimizer)
        _, expected, whole = undisturbed[rows, optimizer]
        state, notes, again = steps_of(failing, rows=rows, optimizer=optimizer)
        half = -(-min(rows, ROWS) // 2)
        replayed = failing.tried[max(failing.at) + 1 :]
        assert (state.step, state.most_rows, max(replayed), sum(replayed)) == (1, half, half, ROWS)
        assert len(notes.said) == 1
        assert f"step 1: {rows} rows at once did not fit" in notes.said[0]
        assert len(whole) == len(again) > 20
        for name, gradient in whole.items():
            torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-6, msg=name)
        before, after = expected.rows[0], notes.rows[0]
        assert after.keys() == before.keys()
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
        for key in ("step", "learning_rate", "tokens", "learned_tokens"):
            assert after[key] == before[key]


def test_nothing_of_the_failed_attempt_is_left_when_it_starts_over() -> None:
    """Without the collector: memory must be there at once."""
    gc.collect()
    gc.disable()
    try:
        for seed in range(6):
            state, failing = new_state(), Failing({2}, seed=seed)
            left: list[int] = []

            def loss(model: GPT2, batch: Batch, failing: Failing = failing, left: list[int] = left) -> Tensor:
                if len(failing.tried) == 3:
                    left.append(sum(not storage.expired() for storage in failing.kept))
                    left.append(sum(p.grad is not None for p in model.parameters()))
                return failing(model, batch)

            run(state, plan=new_plan(steps=1, micro_batch_size=2), loss=loss)
            assert len(failing.kept) > 1
            assert left == [0, 0]
    finally:
        gc.enable()


def test_what_did_not_fit_is_remembered_and_not_tried_again() -> None:
    failing = Failing({1, 3, 10})
    state, notes, _ = steps_of(failing, steps=3)
    # Step 2 fails with 8 rows and with the second 4 of them; step 3 with the fourth 2.
    assert failing.tried == [8, 8, 4, 4, 2, 2, 2, 2, 2, 2, 2, *[1] * 8]
    assert state.most_rows == 1
    assert ["8 rows" in said or "2 rows" in said for said in notes.said] == [True, True]
    other, again = new_state(), Failing(set())
    other.load_numbers(json.loads(json.dumps(state.numbers())))
    assert other.most_rows == 1
    run(other, plan=new_plan(steps=5), loss=again)
    assert again.tried == [1] * 16


def test_a_single_row_that_does_not_fit_ends_with_advice_and_the_last_finished_step_saved() -> None:
    state = new_state()
    before: dict[str, Tensor] = {}

    def loss(model: GPT2, batch: Batch) -> Tensor:
        if state.step < 2:
            return next_token_loss(model, batch)
        tensors = model.state_dict() | state.optimizer.state()
        before.update({name: value.clone() for name, value in tensors.items()})
        return torch.empty(TOO_MUCH)

    notes = Notes()
    with pytest.raises(OutOfMemoryError, match=rf"A single row of {TOKENS} tokens .*block_size") as caught:
        run(state, notes, loss=loss)
    assert caught.value.exit_code == 5
    assert notes.saves == [(2, False)]
    assert state.step == 2
    assert all(
        torch.equal(before[k], v) for k, v in (state.model.state_dict() | state.optimizer.state()).items()
    )
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_a_run_whose_first_step_does_not_fit_saves_nothing() -> None:
    """A checkpoint of step 0 would refuse the smaller block that the advice names."""
    notes = Notes()
    with pytest.raises(OutOfMemoryError):
        run(new_state(), notes, loss=lambda model, batch: torch.empty(TOO_MUCH))
    assert notes.saves == []


def test_other_errors_are_no_lack_of_memory() -> None:
    for text in (
        "mat1 and mat2 shapes cannot be multiplied",
        "could not create a primitive descriptor for the sum",
    ):
        assert not is_out_of_memory(RuntimeError(text))

    def loss(model: GPT2, batch: Batch) -> Tensor:
        raise RuntimeError("expected scalar type Float")

    with pytest.raises(RuntimeError, match="expected scalar type"):
        run(new_state(), loss=loss)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the bird sings a song that it has heard. " * 400)
    return runner(monkeypatch, capfd)


def test_the_run_remembers_it_until_something_about_memory_changes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*TINY, "model.n_embd=16", "train.block_size=16", "train.batch_size=8", "train.micro_batch_size=8")

    def train(failing: Failing, steps: int, *more: str) -> Any:
        monkeypatch.setattr(api, "next_token_loss", failing)
        return command("train", "scratch", *keys, f"train.steps={steps}", *more, "--run", "run")

    first = train(Failing({1}), 3)
    assert first.code == 0, first.err
    assert first.err.count("8 rows at once did not fit into memory") == 1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    again = Failing(set())
    resumed = train(again, 5)
    assert "more at once did not fit into memory before" in " ".join(resumed.out.split())
    assert again.tried == [4] * 4
    # Another size is tried. One row alone that does not fit: exit 5, one sentence, and step 6 is saved.
    other = Failing({*range(2, 30)})
    too_big = train(other, 9, "train.micro_batch_size=6")
    assert other.tried == [6, 2, 6, 3, 2, 1]
    assert too_big.code == 5
    assert too_big.err.splitlines()[-1].startswith(
        "linnet: A single row of 16 tokens does not fit into memory; set"
    )
    assert "Traceback" not in too_big.err
    state = json.loads((tmp_path / "run/checkpoints/step-00000006/state.json").read_bytes())
    assert (state["loop"]["step"], state["loop"]["most_rows"]) == (6, None)


def test_it_holds_for_the_evaluations_at_once_and_not_only_when_the_run_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many rows are computed together may decide the last bits of a loss."""
    evaluated: list[int] = []

    def loss(model: GPT2, batch: Batch) -> Tensor:
        evaluated.append(len(batch.ids))
        return next_token_loss(model, batch)

    monkeypatch.setattr(session, "next_token_loss", loss)
    monkeypatch.setattr(api, "next_token_loss", Failing({1}))
    keys = (*TINY, "data.validation=0.2", "model.n_embd=16", "train.block_size=16", "train.steps=3")
    keys = (*keys, "train.batch_size=8", "train.micro_batch_size=8", "train.eval_every=3")
    assert command("train", "scratch", *keys).code == 0
    assert [evaluated[0], *evaluated[-3:-1]] == [8, 4, 4]


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to set a limit of memory")
def test_for_real_with_less_memory_than_a_batch_takes(warm: Warm, tmp_path: Path) -> None:
    """16 rows at once take some 180 MB (a process without a limit was measured), one takes 12 MB."""
    (tmp_path / "text.txt").write_text("the bird sings a song that it has heard. " * 1000)
    keys = (*TINY, "model.n_embd=128", "train.block_size=256", "train.batch_size=16")
    keys = (*keys, "train.micro_batch_size=16", "train.steps=1", "--run", "run")
    code, output = warm.run("train", "scratch", *keys, folder=tmp_path, faults={"more_memory": 100 << 20})
    assert code == 0, output
    assert "16 rows at once did not fit into memory" in output
    state = json.loads((tmp_path / "run/checkpoints/step-00000001/state.json").read_bytes())["loop"]
    assert 1 <= state["most_rows"] < 16
    code, output = warm.run(
        "train", "scratch", *keys[:-1], "small", folder=tmp_path, faults={"more_memory": 10 << 20}
    )
    assert code == 5, output
    assert "Traceback" not in output
    assert not (tmp_path / "small/checkpoints").exists()
