"""Offload: the update of the plain path within the rounding of the copies, its gradients in fp32, its state its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from linnet.model.gpt2 import GPT2
from linnet.model.loss import next_token_loss
from linnet.training import fitting
from linnet.training.host import HostOptimizer
from linnet.training.loop import TrainState

from ..commands import runner
from .test_loop import Notes, new_plan, new_state, run


def offloaded(dtype: torch.dtype = torch.bfloat16) -> TrainState:
    """The same start as `new_state`, with the CPU as the card."""
    model = new_state().model
    assert isinstance(model, GPT2)
    optimizer = HostOptimizer(model, device="cpu", dtype=dtype, weight_decay=0.1)
    return TrainState(model, optimizer, masters=optimizer.masters)


def trained(state: TrainState, **plan: Any) -> Notes:
    precision = "fp32" if state.model.get_parameter("wte.weight").dtype == torch.float32 else "bf16"
    return run(state, plan=replace(new_plan(**plan), precision=precision))


def test_copies_in_fp32_give_the_plain_path_bit_for_bit() -> None:
    plain, host = new_state(), offloaded(torch.float32)
    assert trained(plain).rows[-1]["loss"] == trained(host).rows[-1]["loss"]
    assert plain.weights().keys() == host.weights().keys()
    assert all(torch.equal(tensor, host.weights()[name]) for name, tensor in plain.weights().items())


@pytest.mark.parametrize("micro_batch_size", [8, 3])
def test_copies_in_bf16_give_the_plain_update_within_their_rounding(micro_batch_size: int) -> None:
    start, plain, host = new_state().weights(), new_state(), offloaded()
    rows = [trained(state, micro_batch_size=micro_batch_size).rows for state in (plain, host)]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
    moved, apart = distance(start, plain.weights()), distance(plain.weights(), host.weights())
    assert apart < 0.1 * moved


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).float().square().sum() for name in a]).sum().sqrt())


def test_masters_are_fp32_and_the_card_holds_their_rounding_and_no_gradient() -> None:
    state = offloaded()
    held: list[bool] = []
    step = state.optimizer.step

    def look() -> None:
        held.extend(p.grad is not None for p in state.model.parameters())
        step()

    state.optimizer.step = look  # type: ignore[method-assign]
    trained(state, micro_batch_size=4)
    assert held
    assert not any(held)
    weights, card = state.weights(), state.model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    for name, tensor in card.items():
        assert tensor.dtype == (torch.bfloat16 if tensor.ndim == 2 else torch.float32)
        assert torch.equal(tensor, weights[name].to(tensor.dtype)), name
    assert any(not torch.equal(tensor, card[name].float()) for name, tensor in weights.items())


def test_a_checkpoint_of_either_path_goes_on_in_the_other() -> None:
    whole = offloaded()
    trained(whole)
    first = offloaded()
    trained(first, steps=3)
    second = offloaded()
    second.load_weights({name: tensor.clone() for name, tensor in first.weights().items()})
    second.optimizer.load_state(first.optimizer.state())
    second.load_numbers(first.numbers())
    trained(second)
    assert all(torch.equal(tensor, second.weights()[name]) for name, tensor in whole.weights().items())
    plain = new_state()
    plain.load_weights(first.weights())
    plain.optimizer.load_state(first.optimizer.state())


def test_an_attempt_that_ran_out_of_memory_leaves_no_gradient() -> None:
    """The first attempt at step 2 fails in its second micro-batch; its first one must not count twice."""
    states = [offloaded(), offloaded()]
    calls = 0

    def failing(model: Any, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return next_token_loss(model, batch)

    run(states[0], plan=replace(new_plan(steps=2, micro_batch_size=4), precision="bf16"), loss=failing)
    assert calls > 4
    trained(states[1], steps=2, micro_batch_size=4)
    assert distance(states[0].weights(), states[1].weights()) < 1e-2


def test_a_whole_run_samples_saves_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the CPU as the card, through the command: model/ and checkpoints hold the fp32 masters."""
    monkeypatch.setattr(fitting, "why_no_offload", lambda training, **_: "")
    monkeypatch.chdir(tmp_path)
    command = runner(monkeypatch, capfd)
    (tmp_path / "text.txt").write_text("the bird sings a song that it has heard. " * 400)
    keys = (
        "data.source=text.txt",
        "tokenizer.name=char",
        "model.n_layer=1",
        "model.n_embd=32",
        "model.n_head=2",
    )
    keys = (*keys, "train.block_size=32", "train.optimizer=adamw", "train.precision=bf16", "train.offload=on")
    keys = (*keys, "train.activation_checkpointing=on", "sample.max_new_tokens=4", "train.eval_every=2")
    for steps in (4, 6):
        done = command("train", "scratch", *keys, f"train.steps={steps}", "--run", "run")
        assert done.code == 0, done.err
    model = load_file(tmp_path / "run/model/model.safetensors")
    saved = load_file(tmp_path / "run/checkpoints/step-00000006/weights.safetensors")
    for tensors in (model, saved):
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert any((tensor != tensor.bfloat16().float()).any() for tensor in tensors.values())
