"""train.compile: the blocks compute the same; a machine that cannot compile trains without, and that is said."""

import contextlib
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from linnet.model.gpt2 import GPT2
from linnet.model.loss import next_token_loss
from linnet.model.recompute import recomputed
from linnet.setup import compile_blocks
from tests.model.examples import Rows, packed, tiny


def gradients(model: GPT2, rows: Rows, *, bf16: bool = False) -> dict[str, Tensor]:
    """Of the loss, by name; the loss itself as `loss`."""
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
        loss = next_token_loss(model, rows)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found | {"loss": loss.detach()}


def test_without_a_compiler_the_blocks_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("No working C++ compiler found in /usr/bin.\nSet CXX.")

    monkeypatch.setattr(torch, "compile", fail)
    model, plain, said = tiny(), tiny(), list[str]()
    compile_blocks(model, "cpu", say=said.append)
    assert said == [
        "train.compile is left out, for torch.compile does not work on this machine: No working C++ compiler found in "
        "/usr/bin."
    ]
    rows = packed([[32], [12, 20]], size=32)
    ours, theirs = gradients(model, rows), gradients(plain, rows)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # The compiler's own.
def test_compiled_blocks_have_the_plain_loss_and_gradients() -> None:
    """Packed rows: in fp32 to rounding, with what is kept and with what is computed again; in bf16 to its digits."""
    model, plain, said = tiny(), tiny(), list[str]()
    compile_blocks(model, "cpu", say=said.append)
    assert said == []
    rows = packed([[12, 20], [5, 5, 9], [32]], size=32)
    expected = gradients(plain, rows)
    assert float(gradients(model, rows, bf16=True)["loss"]) == pytest.approx(
        float(expected["loss"]), rel=0.02
    )
    for run_block in (plain.run_block, recomputed):
        model.run_block = run_block
        found = gradients(model, rows)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
