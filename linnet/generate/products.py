"""x W^T + b for writing, from weights in 32, 16 or 8 bits.

What   `make_product(weight, bias, precision)` holds a matrix in the form that it needs: `few(x)` for the newest
       tokens of some texts, `many(x)` for a piece of a prompt.
Why    A new token takes each weight once, so the speed of one text is bytes of the weights over the memory's bandwidth:
       weights of 8 bits are a quarter of those in 32. A prompt is bound by arithmetic, where narrow weights only cost.
How    The kernels of kernels.c, where they were compiled (`Compiled`). Elsewhere torch's: fp32 and bf16 as they are,
       fp16 on a CPU by FBGEMM. 8 bits: weight = scale x code, a scale for each output channel; torch's kernel for them
       is for few rows, for many the matrix is widened first.

Shapes: N rows (tokens), I input channels, O output channels.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.device import cpu_has_bf16
from linnet.generate.kernels import PAIRED_CHANNELS, Kernels, Kind
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
    With bf16 products it took 2.4 ms for all of GPT-2 124M's, one row each; without, it widens by hand.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        on_cpu = weight.device.type == "cpu"
        self.alike = 1 if on_cpu else 8
        self.wide = torch.bfloat16 if not on_cpu or cpu_has_bf16() else dtype  # bf16 has all codes, too.
        self.codes, scale = quantize(weight)
        self.scale = scale.flatten().bfloat16()
        self.bias = None if bias is None else bias.to(dtype)
        self.dtype = dtype

    def few(self, x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x.bfloat16(), self.codes, self.scale).to(self.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def many(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.wide), self.codes.to(self.wide)).mul_(self.scale).to(self.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        return dequantize(self.codes[ids], self.scale[ids, None].float(), self.dtype)


KINDS = {"int8": Kind.INT8, "fp16": Kind.FP16, "bf16": Kind.BF16, "fp32": Kind.FP32}
HELD = {
    Kind.FP16: torch.float16,
    Kind.BF16: torch.bfloat16,
    Kind.PAIRS: torch.bfloat16,
    Kind.FP32: torch.float32,
}


class Compiled:
    """Weights as int8 codes, in fp16, bf16 or fp32, read by the kernel of kernels.c; all else in fp32. A row of y never
    depends on the rows beside it.
    """

    alike = 1

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision, compiled: Kernels) -> None:
        self.kind = KINDS[precision]
        if self.kind == Kind.BF16 and compiled.pairs and weight.shape[1] % PAIRED_CHANNELS == 0:
            self.kind = Kind.PAIRS
        self.scale: Tensor | None = None
        if self.kind == Kind.INT8:
            self.weight, scale = quantize(weight)
            self.scale = scale.flatten()
        else:
            self.weight = weight.to(HELD[self.kind]).contiguous()
        self.bias = None if bias is None else bias.float().contiguous()
        self.product = compiled.product
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in (self.scale, self.bias))
        self.matrix = (self.weight.data_ptr(), self.kind, *addresses, *self.weight.shape)

    def few(self, x: Tensor) -> Tensor:
        y = x.new_empty(len(x), len(self.weight), dtype=torch.float32)
        x = x.to(torch.bfloat16 if self.kind == Kind.PAIRS else torch.float32).contiguous()
        self.product(x.data_ptr(), y.data_ptr(), len(x), torch.get_num_threads(), *self.matrix)
        return y

    def many(self, x: Tensor) -> Tensor:
        """torch's products are faster where arithmetic counts, if the processor multiplies such numbers."""
        if self.kind == Kind.FP32:
            return F.linear(x, self.weight, self.bias)
        if self.kind == Kind.PAIRS:
            y = F.linear(x.bfloat16(), self.weight).float()
            return y if self.bias is None else y.add_(self.bias)
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


def make_product(
    weight: Tensor,
    bias: Tensor | None,
    *,
    precision: Precision,
    dtype: torch.dtype,
    compiled: Kernels | None = None,
) -> Product:
    """The matrix [O, I] in `precision`, with results in `dtype`. `compiled`: where they fit I and `dtype` is fp32."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    # torch's kernel for 8 bits is the faster one where the CPU multiplies bf16: 2.4 ms for a token of GPT-2 124M.
    if compiled and not (precision == "int8" and cpu_has_bf16()):
        return Compiled(weight, bias, precision, compiled)
    if precision == "int8":
        return Int8(weight, bias, dtype)
    if precision == "fp16" and weight.device.type == "cpu":
        return Half(weight, bias)
    return Plain(weight.to(dtype), None if bias is None else bias.to(dtype))
