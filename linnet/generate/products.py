"""x W^T + b for writing, from weights in 32, 16 or 8 bits.

What   `make_product(weight, bias, precision)` holds a matrix in the form that it needs: `few(x)` for the newest
       tokens of some texts, `many(x)` for a piece of a prompt.
Why    A new token takes each weight once, so the speed of one text is bytes of the weights over the memory's bandwidth:
       weights of 8 bits are a quarter of those in 32. A prompt is bound by arithmetic, where narrow weights only cost.
How    fp32 and bf16: torch's own product. fp16 on a CPU: FBGEMM's, which reads weights in 16 bits and computes in 32.
       8 bits: weight = scale x code, a scale for each output channel. Few rows go through torch's kernel for such
       weights, which widens them in registers; for many the matrix is widened first.

Shapes: N rows (tokens), I input channels, O output channels.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.model.lora import dequantize, quantize

Precision = Literal["fp32", "bf16", "fp16", "int8"]


class Product(Protocol):
    """One matrix of a network, and its bias."""

    def few(self, x: Tensor) -> Tensor:
        """[N, I] -> [N, O], for some rows."""
        ...

    def many(self, x: Tensor) -> Tensor:
        """The same up to rounding, for many rows."""
        ...

    def rows(self, ids: Tensor) -> Tensor:
        """The matrix's rows at `ids` [N] -> [N, I]: a tied head is the embedding, too."""
        ...


class Plain:
    """Weights as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def few(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    many = few

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Int8:
    """Weights as int8 codes [O, I] with a scale for each output channel.

    torch's kernel wants bf16 on both sides; the scales are rounded to it for `many` too, so that both are one matrix.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.codes, scale = quantize(weight)
        self.scale = scale.flatten().bfloat16()
        self.bias = None if bias is None else bias.to(dtype)
        self.dtype = dtype

    def few(self, x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x.bfloat16(), self.codes, self.scale).to(self.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def many(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.codes.to(self.dtype)).mul_(self.scale)  # bf16 has all codes, too
        return y if self.bias is None else y.add_(self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        return dequantize(self.codes[ids], self.scale[ids, None].float(), self.dtype)


class Half:
    """Weights in fp16, packed for FBGEMM; all else in fp32. A head keeps a second copy, for its rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)
        self.halves = weight.half() if bias is None else None

    def few(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return y

    many = few

    def rows(self, ids: Tensor) -> Tensor:
        assert self.halves is not None
        return F.embedding(ids, self.halves).float()


def make_product(weight: Tensor, bias: Tensor | None, *, precision: Precision, dtype: torch.dtype) -> Product:
    """The matrix [O, I] in `precision`, with results in `dtype`."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if precision == "int8":
        return Int8(weight, bias, dtype)
    if precision == "fp16" and weight.device.type == "cpu":
        return Half(weight, bias)
    return Plain(weight.to(dtype), None if bias is None else bias.to(dtype))
