"""Attention by plain products (bf16 on a CPU, short rows): the same attention as the fused kernel's."""

import pytest
import torch

from linnet.model import gpt2
from linnet.model.gpt2 import GPT2, GPT2Config, KVCache

LENGTH = 48


@pytest.fixture
def model():
    model = GPT2(GPT2Config(vocab_size=50, n_positions=300, n_embd=32, n_layer=2, n_head=4), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)  # Attention that looks at something: GPT-2's start is almost uniform.
    return model


def packed(length=LENGTH):
    """Ids, positions and segments of two rows, each of examples of 20 tokens."""
    ids = torch.randint(50, (2, length), generator=torch.Generator().manual_seed(0))
    places = torch.arange(length).expand(2, length)
    return ids, places % 20, (places // 20).int()


def run(model, *inputs):
    """Hidden states and one gradient, in bf16."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(*inputs)
    (hidden.float() * torch.linspace(-1, 1, 32)).sum().backward()
    return hidden.detach().float(), model.h[0].attn.c_attn.weight.grad.clone()


@pytest.mark.parametrize("parts", [1, 3])
def test_products_are_the_attention(model, parts, monkeypatch):
    inputs = packed()[:parts]
    products = run(model, *inputs)
    model.zero_grad()
    exact = model(*inputs)
    (exact * torch.linspace(-1, 1, 32)).sum().backward()
    exact = exact.detach(), model.h[0].attn.c_attn.weight.grad.clone()
    monkeypatch.setattr(gpt2, "products_are_faster", lambda *_: False)
    fused = run(model, *inputs)
    for mine, kernel, right in zip(products, fused, exact, strict=True):
        error, usual = (mine - right).norm() / right.norm(), (kernel - right).norm() / right.norm()
        assert 0 < error < 1.5 * usual + 0.002, f"{error:.4f}, the kernel {usual:.4f}"


@pytest.mark.parametrize("parts", [1, 3])
def test_nobody_sees_the_future_or_another_example(model, parts):
    inputs = packed()[:parts]
    changed = inputs[0].clone()
    changed[:, 30] = (changed[:, 30] + 1) % 50
    before, _ = run(model, *inputs)
    after, _ = run(model, changed, *inputs[1:])
    same = (before == after).all(dim=2).all(dim=0)
    assert same[:30].all()
    assert not same[30]
    assert same[40:].all() == (parts == 3)  # The example of token 30 ends at 40.


def test_long_rows_and_caches_take_the_kernel(model, monkeypatch):
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **settings: calls.append(args[0].shape[2]) or kernel(*args, **settings),
    )
    cache = KVCache(model.config, size=64, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(packed()[0])
        assert calls == []
        model(packed(257)[0])
        model(packed()[0][:1], cache=cache)
    assert calls == [257, 257, LENGTH, LENGTH]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.01)]
)
def test_gelu_and_its_slope_are_torchs(dtype, tolerance):
    # Far out, sigmoid must not turn into 0 x infinity.
    x = torch.cat([torch.linspace(-8, 8, 1001), torch.tensor([-1e4, -100.0, 100.0, 1e4])]).to(dtype)
    mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, right = gpt2.gelu(mine), torch.nn.functional.gelu(exact, approximate="tanh")
    grad = torch.linspace(-1, 1, len(x)).to(dtype)
    y.backward(grad)
    right.backward(grad.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), right, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(mine.grad.double(), exact.grad, atol=3 * tolerance, rtol=tolerance)
