"""x W^T + b for writing, from weights in 32, 16 or 8 bits.

What   `make_product(weight, bias, precision)` holds a matrix in the form that it needs: `few(x)` for the newest
       tokens of some texts, `many(x)` for a piece of a prompt.
Why    A new token takes each weight once, so the speed of one text is bytes of the weights over the memory's bandwidth:
       weights of 8 bits are a quarter of those in 32. A prompt is bound by arithmetic, where narrow weights only cost.
How    bf16: torch's own product. 8 bits: weight = scale x code, a scale for each output channel. On a CPU fp32 and
       fp16, and without bf16 products 8 bits, are read by the kernel of kernels.c, where that was compiled; else fp16
       by FBGEMM's, and 8 bits by torch's for few rows, while for many the matrix is widened first.

Shapes: N rows (tokens), I input channels, O output channels.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.device import cpu_has_bf16
from linnet.generate.kernels import CHANNELS, Kernels, kernels
from linnet.model.lora import dequantize, quantize

Precision = Literal["fp32", "bf16", "fp16", "int8"]


class Product(Protocol):
    """One matrix of a network, and its bias."""

    alike: int
    """`few` rounds a row alike in any number of rows that is a multiple of this."""

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
        # MKL's 1, 2, 3, 5 and 7 rows round differently in fp32; bf16 never does.
        self.alike = 1 if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 else 8

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
        self.alike = 1 if weight.device.type == "cpu" else 8
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


class Compiled:
    """Weights as int8 codes, in fp16 or in fp32, read by the kernel of kernels.c; all else in fp32. A row of y never
    depends on the rows beside it.
    """

    alike = 1

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision, compiled: Kernels) -> None:
        self.scale: Tensor | None = None
        if precision == "int8":
            self.weight, scale = quantize(weight)
            self.scale = scale.flatten()
        else:
            self.weight = weight.to(torch.float16 if precision == "fp16" else torch.float32).contiguous()
        self.bias = None if bias is None else bias.float()
        self.product = compiled.product
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in (self.scale, self.bias))
        self.matrix = (self.weight.data_ptr(), self.weight.element_size(), *addresses, *self.weight.shape)

    def few(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(len(x), len(self.weight))
        self.product(x.data_ptr(), y.data_ptr(), len(x), torch.get_num_threads(), *self.matrix)
        return y

    def many(self, x: Tensor) -> Tensor:
        if self.weight.dtype == torch.float32:  # MKL is faster where arithmetic counts.
            return F.linear(x, self.weight, self.bias)
        return self.few(x)

    def rows(self, ids: Tensor) -> Tensor:
        if self.scale is None:
            return self.weight[ids].float()
        return dequantize(self.weight[ids], self.scale[ids, None], torch.float32)


class Half:
    """Weights in fp16, packed for FBGEMM; all else in fp32. A head keeps a second copy, for its rows."""

    alike = 6
    """Blocks of 1 and 2 rows round differently; 6 is a whole block."""

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
    on_cpu = weight.device.type == "cpu"
    # torch's kernel for 8 bits was made for bf16 activations: with such products it took 2.4 ms for all of 124M's.
    ours = precision in ("fp32", "fp16") or (precision == "int8" and not cpu_has_bf16())
    if on_cpu and ours and weight.shape[1] % CHANNELS == 0 and (compiled := kernels()):
        return Compiled(weight, bias, precision, compiled)
    if precision == "int8":
        return Int8(weight, bias, dtype)
    if precision == "fp16" and on_cpu:
        return Half(weight, bias)
    return Plain(weight.to(dtype), None if bias is None else bias.to(dtype))
