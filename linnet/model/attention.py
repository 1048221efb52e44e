"""Causal self-attention inside packed rows: tokens look at earlier ones of their own example.

What   `pattern_of(...)` decides once for a micro-batch who may look at whom and by which kernel, `attend(...)` computes
       it in every layer.
Why    A row holds several examples, which must not see each other. A mask says so, but a kernel with a mask computes
       what the mask then throws away, and the CPU's fused kernel is slow in 16 bits: attention took a quarter of a step
       for 7 % of its arithmetic.
How    CPU, 16 bits or packed   plain products, in blocks of what is really seen (`_Products`)
       CUDA, packed             the variable-length flash kernel, where the card has it; a mask where not (Colab's T4)
       everything else          `scaled_dot_product_attention`; with a mask it is the oracle of the other two
       Which one it is follows device, precision and lengths alone, never a stopwatch.

Shapes: B rows of T tokens, H heads, D head size, C = H D channels, N examples, S room of the cache.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Lengths = list[list[int]]
"""For each row the lengths of its examples; what is missing to T is padding."""

# Queries of a block. 4 rows of 512, 12 heads, forward and backward on one core: 128 queries 69 ms, 256 96 ms, 512 110
# ms, SDPA 155 ms; four such rows packed with examples of about 160: 56 ms, SDPA with a mask 193 ms. In fp32 packed rows
# take 59 ms instead of 157, others 160 instead of 183: too little for the memory that the shares take.
QUERIES = 128
# What the calls for one more block cost, in (query, key, head) triples: 150 us at 9 ns a triple.
CALLS = 17_000


class Block(NamedTuple):
    """Queries `start` to `stop` of some rows, which look at keys `first` to `stop`."""

    rows: slice
    first: int
    start: int
    stop: int
    mask: Tensor
    """[Q, K], or [R, Q, K] where the rows differ: 0 where a query may look, -inf elsewhere; added to the scores."""


@dataclass(frozen=True)
class Pattern:
    """Who may look at whom; of blocks, ends and mask at most one is given. None: plain causal attention (or one new
    token, which sees everything)."""

    causal: bool = False
    blocks: list[Block] | None = None
    """For plain products."""
    ends: Tensor | None = None
    """[N + 1] int32 on the card: where examples begin in all rows laid end to end; for the variable-length kernel."""
    mask: Tensor | None = None
    """[B, 1, T, T] or [T, S], added to the scores."""


def pattern_of(
    shape: tuple[int, int],
    *,
    lengths: Lengths | None,
    n_head: int,
    head_size: int,
    dtype: torch.dtype,
    device: torch.device,
    dropout: bool = False,
    start: int = 0,
    cached: bool = False,
) -> Pattern:
    """Choose for a micro-batch.

    Args:
        shape: (B, T).
        lengths: None: every row is one example (with or without padding behind it).
        dtype: of queries, keys and values.
        dropout: whether attention's shares are dropped at random, which only SDPA does.
        start: tokens in the cache before these.
    """
    rows, size = shape
    products = device.type == "cpu" and (dtype == torch.bfloat16 or lengths is not None)
    if products and not cached and not dropout:
        return Pattern(blocks=_blocks(rows, size, lengths=lengths, n_head=n_head, dtype=dtype))
    if lengths is None:
        if start == 0 or size == 1:  # A single new token sees everything.
            return Pattern(causal=start == 0 and size > 1)
        return Pattern(
            mask=_additive(torch.ones(size, start + size, dtype=torch.bool).tril_(start), dtype, device)
        )
    if device.type == "cuda" and not dropout and has_varlen(dtype, head_size):
        ends = list(itertools.accumulate(itertools.chain.from_iterable(_whole(lengths, size)), initial=0))
        return Pattern(ends=torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True))
    return Pattern(mask=_additive(_own_past(lengths, size).unsqueeze(1), dtype, device))


def attend(qkv: Tensor, pattern: Pattern, *, n_head: int, dropout: float = 0.0) -> Tensor:
    """Queries, keys and values side by side [B, T, 3 C] -> what each token gathers [B, T, C]."""
    batch, size, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    if pattern.blocks is not None:
        out: Tensor = _Products.apply(qkv, n_head, pattern.blocks)  # type: ignore[no-untyped-call]
        return out
    if pattern.ends is not None:
        q, k, v = qkv.view(batch * size, 3, n_head, -1).unbind(1)
        return varlen(q, k, v, pattern.ends, size).view(batch, size, channels)
    q, k, v = split_heads(qkv, n_head)
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=pattern.mask, is_causal=pattern.causal, dropout_p=dropout
    )
    return y.transpose(1, 2).reshape(batch, size, channels)


def split_heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, 3 C] -> queries, keys and values, each [B, H, T, D]."""
    batch, size, width = qkv.shape
    heads = qkv.view(batch, size, 3, n_head, width // 3 // n_head)
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    return q, k, v


# -- masks -----------------------------------------------------------------------------------------------------------


def _whole(lengths: Lengths, size: int) -> Lengths:
    """The lengths with each row's padding as one more example."""
    return [[*row, size - sum(row)] if sum(row) < size else row for row in lengths]


def _own_past(lengths: Lengths, size: int) -> Tensor:
    """[B, T, T] bool: True where the key is an earlier token of the query's example."""
    numbers = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in _whole(lengths, size)]
    )
    return (numbers[:, :, None] == numbers[:, None, :]).tril_()


def _additive(allowed: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where allowed, -inf elsewhere; in the dtype of attention, or each layer would convert it."""
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
    return mask.to(device, non_blocking=True)


# -- the variable-length kernel --------------------------------------------------------------------------------------


@cache
def has_varlen(dtype: torch.dtype, head_size: int) -> bool:
    """Whether the card has the variable-length flash kernel: 16 bits, compute capability 8.0, head size / 8."""
    if dtype == torch.float32 or head_size % 8 or head_size > 256:
        return False
    is_there = importlib.util.find_spec("torch.nn.attention.varlen") is not None  # torch 2.10 or newer
    return is_there and torch.cuda.get_device_capability() >= (8, 0)


@cache
def _varlen_kernel() -> tuple[Callable[..., Any], dict[str, Any]]:
    """torch's function, and how it is told to be causal: torch 2.13 has a window where 2.10 had a flag."""
    from torch.nn.attention.varlen import varlen_attn

    is_new = "window_size" in inspect.signature(varlen_attn).parameters
    return varlen_attn, {"window_size": (-1, 0)} if is_new else {"is_causal": True}


def varlen(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    """[B T, H, D] each -> [B T, H, D]; `longest` is at least the longest example."""
    kernel, causal = _varlen_kernel()
    out: Tensor = kernel(q, k, v, ends, ends, longest, longest, **causal)
    return out


# -- plain products --------------------------------------------------------------------------------------------------


def _blocks(rows: int, size: int, *, lengths: Lengths | None, n_head: int, dtype: torch.dtype) -> list[Block]:
    """What is to be computed: all rows at once up to the diagonal, or each example by itself, whichever is less."""
    together = [(0, start, min(start + QUERIES, size)) for start in range(0, size, QUERIES)]
    if lengths is None:
        mask = _staircase(size, dtype)
        return [Block(slice(0, rows), *at, _stairs(mask, *at)) for at in together]
    alone = [
        (row, (first, start, min(start + QUERIES, stop)))
        for row, parts in enumerate(_whole(lengths, size))
        for first, stop in itertools.pairwise(itertools.accumulate(parts, initial=0))
        for start in range(first, stop, QUERIES)
    ]
    cost_alone = sum(n_head * (stop - start) * (stop - first) + CALLS for _, (first, start, stop) in alone)
    cost_together = sum(n_head * rows * (stop - start) * stop + CALLS for _, start, stop in together)
    if cost_alone < cost_together:
        mask = _staircase(size, dtype)
        return [Block(slice(row, row + 1), *at, _stairs(mask, *at)) for row, at in alone]
    own = _additive(_own_past(lengths, size), dtype, torch.device("cpu"))
    return [Block(slice(0, rows), 0, start, stop, own[:, start:stop, :stop]) for _, start, stop in together]


def _staircase(size: int, dtype: torch.dtype) -> Tensor:
    """[Q, T + Q]: row q is 0 up to column T + q and -inf beyond; every causal mask of a block is a part of it."""
    queries = min(QUERIES, size)
    allowed = torch.ones(queries, size + queries, dtype=torch.bool).tril_(size)
    return _additive(allowed, dtype, torch.device("cpu"))


def _stairs(staircase: Tensor, first: int, start: int, stop: int) -> Tensor:
    size = staircase.shape[1] - staircase.shape[0]
    offset = size - (start - first)
    return staircase[: stop - start, offset : offset + stop - first]


class _Products(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + mask) v, block by block, keeping the shares for the backward pass.

    Their bytes: 2 B H T (T + Q) / 2 for causal rows, 16 MB in a layer of 4 rows of 512 with 12 heads.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_head: int, blocks: list[Block]) -> Tensor:
        batch, size, width = qkv.shape
        heads = qkv.view(batch, size, 3, n_head, -1).permute(2, 0, 3, 1, 4).contiguous()  # [3, B, H, T, D]
        scale = heads.shape[-1] ** -0.5
        y = torch.empty_like(heads[0])
        kept = []
        for block in blocks:
            q, k, v = _parts(heads, block)
            mask = block.mask
            if mask.ndim == 3:  # [R, Q, K] -> [R H, Q, K]
                mask = mask.repeat_interleave(n_head, dim=0)
            shares = torch.softmax(torch.baddbmm(mask, q, k.mT, alpha=scale), dim=-1)
            y[block.rows, :, block.start : block.stop] = _rows(torch.bmm(shares, v), n_head)
            kept.append(shares)
        ctx.save_for_backward(heads, y, *kept)
        ctx.blocks = blocks
        return y.transpose(1, 2).reshape(batch, size, width // 3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        heads, y, *kept = ctx.saved_tensors
        _, batch, n_head, size, head_size = heads.shape
        scale = head_size**-0.5
        dy = dy.view(batch, size, n_head, head_size).transpose(1, 2).contiguous()
        inner = (dy * y).sum(-1, keepdim=True)  # The softmax's slope needs sum_k share_k d share_k = dy . y.
        slopes = torch.zeros_like(heads)
        dq, dk, dv = slopes
        for block, shares in zip(ctx.blocks, kept, strict=True):
            at, seen = slice(block.start, block.stop), slice(block.first, block.stop)
            q, k, v = _parts(heads, block)
            slope = dy[block.rows, :, at].flatten(0, 1)
            dv[block.rows, :, seen] += _rows(torch.bmm(shares.mT, slope), n_head)
            scores = torch.bmm(slope, v.mT).sub_(inner[block.rows, :, at].flatten(0, 1)).mul_(shares)
            dq[block.rows, :, at] = _rows(torch.bmm(scores, k).mul_(scale), n_head)
            dk[block.rows, :, seen] += _rows(torch.bmm(scores.mT, q).mul_(scale), n_head)
        return slopes.permute(1, 3, 0, 2, 4).reshape(batch, size, -1), None, None


def _parts(heads: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [G, Q, D], keys and values [G, K, D] of a block, G = rows x heads."""
    q, k, v = heads
    seen = slice(block.first, block.stop)
    return (
        q[block.rows, :, block.start : block.stop].flatten(0, 1),
        k[block.rows, :, seen].flatten(0, 1),
        v[block.rows, :, seen].flatten(0, 1),
    )


def _rows(x: Tensor, n_head: int) -> Tensor:
    """[R H, Q, D] -> [R, H, Q, D]"""
    return x.view(-1, n_head, *x.shape[1:])
