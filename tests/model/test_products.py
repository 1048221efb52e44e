"""Attention and GELU by plain products: the same as the kernels of torch, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from linnet.model import attention, gpt2
from linnet.model.attention import Pattern, attend, pattern_of
from linnet.model.gpt2 import GPT2, GPT2Config, KVCache

HEADS, SIZE = 4, 8  # of a head
CPU = torch.device("cpu")
ROWS = {
    "one example a row": (None, 2, 300),
    "short rows": (None, 3, 16),
    "long examples": ([[200, 100], [1, 170, 90], [300]], 3, 300),
    "many short ones": ([[5] * 9, [20, 20], [1] * 48], 3, 48),
    "empty row": ([[], [30, 10]], 2, 48),
}


def pattern(name: str, **changes) -> Pattern:
    lengths, rows, size = ROWS[name]
    settings = {"n_head": HEADS, "head_size": SIZE, "dtype": torch.bfloat16, "device": CPU}
    return pattern_of((rows, size), lengths=lengths, **(settings | changes))


def both_ways(qkv, how: Pattern):
    """What each token gathers, and the slopes of the inputs, for one fixed slope of the result."""
    qkv = qkv.clone().requires_grad_()
    y = attend(qkv, how, n_head=HEADS)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))
    return y.detach().double(), qkv.grad.double()


def inputs(name: str):
    _, rows, size = ROWS[name]
    generator = torch.Generator().manual_seed(size)
    return torch.randn(rows, size, 3 * HEADS * SIZE, generator=generator)


@pytest.mark.parametrize("name", ROWS)
def test_products_are_the_attention(name):
    """In fp32 and fp64 exactly, in bf16 as near to that as torch's kernel."""
    qkv, products = inputs(name), pattern(name)
    oracle = pattern(name, dtype=torch.float64, dropout=True)  # SDPA
    assert products.blocks
    assert oracle.blocks is None
    exact = both_ways(qkv.double(), oracle)
    in_full = pattern(name)
    blocks = [block._replace(mask=block.mask.double()) for block in in_full.blocks]
    for mine, right in zip(both_ways(qkv.double(), Pattern(blocks=blocks)), exact, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-12, rtol=1e-10)
    half = qkv.bfloat16()
    kernel = both_ways(half, pattern(name, dropout=True))
    for mine, usual, right in zip(both_ways(half, products), kernel, exact, strict=True):
        error, typical = (mine - right).norm() / right.norm(), (usual - right).norm() / right.norm()
        assert 0 < error < 1.5 * typical + 0.002, f"{error:.4f}, the kernel {typical:.4f}"


def test_the_cheaper_blocks_are_taken():
    """Each example by itself where they are long, whole rows under a mask where they are short."""
    alone, together = pattern("long examples").blocks, pattern("many short ones").blocks
    assert {block.rows.stop - block.rows.start for block in alone} == {1}
    assert [block.rows for block in together] == [slice(0, 3)]


@pytest.mark.parametrize("name", ["long examples", "many short ones"])
def test_nobody_sees_the_future_or_another_example(name):
    lengths, _, _ = ROWS[name]
    qkv = inputs(name).bfloat16()
    changed = qkv.clone()
    changed[1, lengths[1][0] + 3] = 7.0  # In the second example of row 1.
    before, after = (attend(x, pattern(name), n_head=HEADS) for x in (qkv, changed))
    same = (before == after).all(dim=2)
    first, second = lengths[1][0], lengths[1][0] + lengths[1][1]
    assert same[0].all()
    assert same[1, : first + 3].all()
    assert not same[1, first + 3 : second].any()
    assert same[1, second:].all()


def test_which_kernel_is_taken():
    assert pattern("long examples", dtype=torch.float32).blocks
    assert pattern("long examples", dropout=True).mask.shape == (3, 1, 300, 300)
    assert pattern("one example a row", dtype=torch.float32) == Pattern(causal=True)
    assert pattern("one example a row", cached=True, start=3).mask.shape == (300, 303)
    assert pattern("one example a row", dropout=True) == Pattern(causal=True)


def test_a_cache_takes_the_kernel(monkeypatch):
    model = GPT2(GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4), seed=1)
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].shape[2]) or kernel(*a, **k)
    )
    ids = torch.zeros(1, 48, dtype=torch.long)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids)
        assert calls == []
        model(ids, cache=KVCache(model.config, size=64, dtype=torch.bfloat16))
    assert calls == [48, 48]


@pytest.mark.parametrize("name", ["long examples", "many short ones", "empty row"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_variable_length_kernel_is_the_attention(name, dtype):
    if not torch.cuda.is_available() or not attention.has_varlen(dtype, SIZE):
        pytest.skip("there is no card with the variable-length kernel")
    qkv = inputs(name).cuda()
    how = {"device": torch.device("cuda"), "dtype": dtype}
    fast, masked = pattern(name, **how), pattern(name, **how, dropout=True)
    assert fast.ends is not None
    exact = both_ways(qkv.cpu().double(), pattern(name, dtype=torch.float64, dropout=True))
    usual = both_ways(qkv.to(dtype), masked)
    for mine, typical, right in zip(both_ways(qkv.to(dtype), fast), usual, exact, strict=True):
        error, allowed = (mine.cpu() - right).norm(), (typical.cpu() - right).norm()
        assert error < 1.5 * allowed + 0.002 * right.norm()


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
