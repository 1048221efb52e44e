"""Activation checkpointing: the same bits from less memory, and no compiler imported."""

import contextlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from linnet.model.attention import Lengths
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.lora import add_adapters
from linnet.model.recompute import _Again, recomputed


def network(dropout: float = 0.0) -> GPT2:
    return GPT2(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=3, n_head=2, dropout=dropout), seed=1
    )


def gradients(model: GPT2, *, bf16: bool = False, segments: Lengths | None = None) -> list[Tensor]:
    ids = torch.randint(0, 50, (2, 32), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
        hidden = model(ids, None, segments)
    hidden.float().square().sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [grad.clone() for grad in found]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("packed", [False, True])
def test_the_same_bits(bf16: bool, dropout: float, packed: bool) -> None:
    model = network(dropout)
    segments = [[11, 11, 10], [20, 5]] if packed else None
    plain = gradients(model, bf16=bf16, segments=segments)
    model.run_block = recomputed
    again = gradients(model, bf16=bf16, segments=segments)
    assert len(plain) == len(again) > 30
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("bf16", [False, True])
def test_nothing_stays_behind_a_step(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    seen: list[StorageWeakRef] = []
    keep = _Again._keep

    def noted(again: _Again, tensor: Tensor) -> Any:
        seen.append(StorageWeakRef(tensor.untyped_storage()))
        return keep(again, tensor)

    monkeypatch.setattr(_Again, "_keep", noted)
    model = network()
    of_the_model = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    model.run_block = recomputed
    gradients(model, bf16=bf16)
    own = [storage for storage in seen if storage.cdata not in of_the_model]
    assert len(own) > 3 * 10
    assert all(storage.expired() for storage in own)


@pytest.mark.parametrize("base", ["float", "int8"])
def test_the_same_bits_beside_a_frozen_network(base: str) -> None:
    model = network()
    add_adapters(model, rank=2, alpha=4.0, targets=["c_attn", "c_fc"], base=base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(4))
    plain = gradients(model, bf16=True)
    model.run_block = recomputed
    again = gradients(model, bf16=True)
    assert len(plain) == len(again) == 12
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_of_a_block_only_its_input_is_kept() -> None:
    """Beside the first and last norm, and the embedding."""
    model, ids = network(), torch.zeros(2, 32, dtype=torch.long)

    def saved() -> int:
        """Values that autograd keeps, seen by hooks below those of `recomputed`."""
        seen: dict[int, int] = {}
        with saved_tensors_hooks(lambda t: seen.__setitem__(t.data_ptr(), t.numel()) or t, lambda t: t):
            assert model(ids).requires_grad
        return sum(seen.values())

    parameters = sum(p.numel() for p in model.parameters())
    plain = saved()
    model.run_block = recomputed
    assert plain > 3 * 15 * 64 * 32
    assert saved() < 4 * 64 * 32 < plain - parameters


def test_the_second_forward_imports_no_compiler() -> None:
    program = (
        "import sys, torch; from linnet.model.gpt2 import *; from linnet.model.recompute import recomputed;"
        "m = GPT2(GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1, dropout=0.1));"
        "m.run_block = recomputed; m(torch.zeros(1, 4, dtype=torch.long)).sum().backward();"
        "print([name for name in sys.modules if name.startswith('torch._dynamo.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr
