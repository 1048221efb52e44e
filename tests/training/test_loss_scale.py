"""fp16: a scaled loss, so that small gradients do not vanish; overflows halve the scale and do not count as skipped.

All on the CPU, which emulates fp16: slow, but the same numbers.
"""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from linnet import api, device
from linnet.data.batches import Batch
from linnet.device import Choice, choose_precision
from linnet.errors import DivergedError
from linnet.model.gpt2 import GPT2
from linnet.model.loss import next_token_loss
from linnet.training import loop, plan
from linnet.training.plan import Plan
from tests.commands import runner
from tests.training.test_loop import Notes, batch_of, new_plan, new_state, run
from tests.training.test_skipped_steps import TINY, Bad, rows_of

STOP_AT = 18


def fp16_plan(steps: int) -> Plan:
    return replace(new_plan(steps=steps), precision="fp16")


def test_the_scale_follows_torchs_own_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS_TO_DOUBLE", 3)
    overflows = {0, 1, 5, 12, 13, 14, 15, 16, 17}  # Six in a row: not one counts as skipped.
    weight = torch.nn.Parameter(torch.ones(1))
    sgd, theirs = torch.optim.SGD([weight]), torch.amp.GradScaler("cpu", growth_interval=3)
    expected = []
    for step in range(20):
        theirs.scale(weight.sum()).backward()
        assert weight.grad is not None
        if step in overflows:
            weight.grad.fill_(math.inf)
        theirs.step(sgd)
        theirs.update()
        sgd.zero_grad()
        expected.append(theirs.get_scale())
    state, scales = new_state(), []
    notes = Notes(check_stop=lambda: scales.append(state.loss_scale))
    run(state, notes, plan=fp16_plan(20), loss=Bad("gradient", places=overflows))
    assert [*scales[1:], state.loss_scale] == expected
    assert notes.said == []
    assert state.skipped_in_a_row == 0
    assert len(notes.rows) == 20


def gradients_in_fp16(scale: float, *, small: float) -> dict[str, Tensor]:
    """Those of the first batch, its loss times `small`, as the optimizer is given them."""
    state, given = new_state(), {}
    state.loss_scale = scale
    state.optimizer.step = lambda: given.update(  # type: ignore[method-assign]
        {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
    )
    run(state, plan=fp16_plan(1), loss=lambda model, batch: next_token_loss(model, batch) * small)
    return given


def test_small_gradients_vanish_without_scaling_and_not_with_it() -> None:
    small, weight = 1e-5, batch_of(0).weight
    model = new_state().model
    (next_token_loss(model, batch_of(0)) * (small / weight)).backward()
    unscaled, scaled = gradients_in_fp16(1.0, small=small), gradients_in_fp16(2.0**16, small=small)
    lost = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        size = parameter.grad.norm()
        assert (scaled[name] - parameter.grad).norm() < 0.01 * size, name
        lost[name] = float((unscaled[name] - parameter.grad).norm() / size)
    assert lost["h.0.attn.c_attn.weight"] > 0.1
    assert sum(share > 0.1 for share in lost.values()) > len(lost) / 2


def test_a_scale_that_is_too_large_comes_down_and_nothing_is_said() -> None:
    state = new_state()
    state.loss_scale = 2.0**36
    notes = run(state, plan=fp16_plan(30))
    overflows = [row for row in notes.rows if not math.isfinite(row["grad_norm"])]
    assert 5 < len(overflows) < 25
    assert state.loss_scale == 2.0 ** (36 - len(overflows))
    assert all(math.isfinite(row["loss"]) for row in notes.rows)
    assert notes.said == []
    assert notes.rows[-1]["loss"] < notes.rows[0]["loss"]


def test_what_no_scale_mends_is_skipped_and_named() -> None:
    state, notes = new_state(), Notes()
    state.loss_scale = 4.0
    with pytest.raises(DivergedError):
        run(state, notes, plan=fp16_plan(30), loss=Bad("gradient", places=set(range(30))))
    assert (state.step, state.loss_scale, len(notes.said)) == (2 + loop.MOST_SKIPPED, 1.0, loop.MOST_SKIPPED)
    state = new_state()
    with pytest.raises(DivergedError):
        run(state, plan=fp16_plan(30), loss=Bad("loss", places=set(range(30))))
    assert (state.step, state.loss_scale) == (loop.MOST_SKIPPED, loop.FIRST_LOSS_SCALE)


def test_fp16_trains_as_fp32_does() -> None:
    ours, exact = run(new_state(), plan=fp16_plan(6)), run(new_state(), plan=new_plan(steps=6))
    for row, expected in zip(ours.rows, exact.rows, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-3)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-2)


def test_a_resumed_run_in_fp16_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (device, plan):  # Whichever calls it.
        monkeypatch.setattr(
            module, "choose_precision", lambda *_: Choice("fp16", "a test asks for it"), raising=False
        )
    monkeypatch.setattr(loop, "STEPS_TO_DOUBLE", 1)  # The scale soon is too large, and comes down again.
    command = runner(monkeypatch, capfd)
    (tmp_path / "notes.txt").write_text("The bird sings a song that it has heard. " * 40)
    keys = ("train", "text", "data.source=notes.txt", *TINY, "train.steps=24", "train.save_every=100")
    keys = (*keys, "train.micro_batch_size=4")
    assert command(*keys, "--run", "whole").code == 0
    seen: list[int] = []

    def loss(model: GPT2, batch: Batch) -> Tensor:
        seen.append(1)
        if len(seen) == STOP_AT:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_token_loss(model, batch)

    monkeypatch.setattr(api, "next_token_loss", loss)
    assert [command(*keys, "--run", "run").code for _ in range(2)] == [143, 0]
    overflows = [row["step"] for row in rows_of(tmp_path / "whole") if row["grad_norm"] is None]
    assert min(overflows) < STOP_AT
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    ours, theirs = (tmp_path / name / "checkpoints/step-00000024" for name in ("run", "whole"))
    for path in theirs.glob("*.safetensors"):
        assert (ours / path.name).read_bytes() == path.read_bytes()
    numbers = [json.loads((path / "state.json").read_bytes())["loop"] for path in (ours, theirs)]
    for values in numbers:
        del values["time_s"]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("capability", "auto"),
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_precision_on_a_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], auto: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision("auto", "cuda").value == auto
    for asked in ("fp16", "bf16", "fp32"):
        assert choose_precision(asked, "cuda") == Choice(asked, "asked for")
    assert choose_precision("fp16", "cpu").value in ("fp32", "bf16")
