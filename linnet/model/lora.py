"""LoRA: a few trained numbers beside a frozen network.

What   `add_adapters` freezes a `GPT2` and gives its matrices adapters: y = W x + b + (alpha / rank) B (A x), where only
       A [rank, in] and B [out, rank] are trained. `trained_state` and `load_trained` are for checkpoints, `merged`
       adds the adapters to the weights that they were trained beside.
Why    Gradients and moments of a whole network take 12 bytes a weight. Adapters of rank 8 are 1 % of gpt2's weights, so
       what remains is the frozen network: 2 bytes a weight in bf16, and 1 byte for its matrices in int8.
How    The matrices (`Linear`) and embeddings are replaced by frozen ones of the same names, so the network itself stays
       as it is. With an int8 base each product makes its matrix anew from the codes, in the backward pass once more: no
       copy of it is kept. Hu et al. 2021, "LoRA" (https://arxiv.org/abs/2106.09685); what an adapter starts from is as
       in Hugging Face's PEFT.

Shapes: N tokens, I inputs and O outputs of a matrix, R rank.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.gpt2 import GPT2, Embedding, Linear

QUANTIZED_AT_ONCE = 64  # rows
LARGEST_CODE = 127  # of int8; -128 is not used, so that codes are symmetric


def add_adapters(
    model: GPT2,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    base: Literal["float", "int8"] = "float",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> None:
    """Freeze `model` in place and add an adapter to each matrix whose last name is in `targets`.

    A is drawn with `seed`, B is 0: at first the network computes what it did. What is frozen is kept in `dtype`, that
    of the products, which would round it in any case; `base="int8"` keeps the blocks' matrices in 8 bits. Norms and
    biases stay in fp32, they are few. Matrix after matrix: beside a model from
    `load_model(..., mapped=True)` memory never holds more than what is kept and one matrix in fp32.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.wte, model.wpe = FrozenEmbedding(model.wte.weight, dtype), FrozenEmbedding(model.wpe.weight, dtype)
    generator = torch.Generator().manual_seed(seed)
    for block in model.h:
        for part in (block.attn, block.mlp):
            assert isinstance(part, nn.Module)
            for name, child in list(part.named_children()):
                if isinstance(child, Linear):
                    frozen = FrozenLinear(child, base=base, dtype=dtype)
                    if name in targets:
                        frozen.add_adapter(rank=rank, alpha=alpha, generator=generator)
                    setattr(part, name, frozen)


class FrozenEmbedding(Embedding):
    """An embedding that is not trained, kept in `dtype`. What it gives is fp32, as the sums of the blocks are."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__(weight.shape[0], weight.shape[1], _weight=_own(weight, dtype), _freeze=True)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


class FrozenLinear(nn.Module):
    """A matrix [O, I] with its bias that is not trained, and the adapter that may be beside it.

    Attributes:
        weight: in the dtype of the products, or int8 codes.
        scale: [O, 1] fp32, what a code of each row counts; None where `weight` is no codes.
        lora_A, lora_B: [R, I] and [O, R] in fp32, trained; None without an adapter.
    """

    def __init__(self, linear: Linear, *, base: Literal["float", "int8"], dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.factor = 0.0
        """alpha / rank."""
        scale: Tensor | None = None
        weight = linear.weight.detach()
        if base == "int8":
            weight, scale = quantize(weight)
        self.weight = nn.Parameter(_own(weight, dtype) if scale is None else weight, requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale, requires_grad=False)
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None

    def add_adapter(self, *, rank: int, alpha: float, generator: torch.Generator) -> None:
        """A ~ U(-1 / sqrt(I), 1 / sqrt(I)) (Kaiming's with slope sqrt(5), PEFT's choice), B = 0."""
        down = torch.empty(rank, self.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(down)
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        self.factor = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        device_type = x.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else x.dtype
        x = x.to(dtype)
        bias = self.bias.to(dtype)
        if self.scale is None:
            y = F.linear(x, self.weight.to(dtype), bias)
        else:
            y = _Int8Product.apply(x, self.weight, self.scale, bias)  # type: ignore[no-untyped-call]
        if self.lora_A is None or self.lora_B is None:
            return y
        inner = F.linear(x, self.lora_A.to(dtype)).flatten(0, -2)  # [N, R]
        outer = self.lora_B.to(dtype).t()
        return torch.addmm(y.flatten(0, -2), inner, outer, alpha=self.factor).view_as(y)


def _own(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: `weight` may be the transposed view of a mapped file."""
    return weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [O, I] and what a code of each row counts, [O, 1] fp32: the largest of a row has the code 127.

    Some rows at a time: whole matrices in fp32 between the codes of one and the next leave holes in the heap that
    nothing fits into, 2.3 GB for gpt2-medium.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), 1, device=weight.device)
    at_once = (torch.split(tensor, QUANTIZED_AT_ONCE) for tensor in (weight, codes, scale))
    for rows, their_codes, their_scale in zip(*at_once, strict=True):
        torch.div(rows.float().abs().amax(dim=1, keepdim=True), LARGEST_CODE, out=their_scale)
        their_scale.masked_fill_(their_scale == 0, 1.0)  # A row of zeros keeps zeros.
        their_codes.copy_((rows.float() / their_scale).round_())
    return codes, scale


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [O, I]: rounded once, to `dtype`, behind the product with the scale."""
    return torch.mul(codes, scale, out=torch.empty(codes.shape, dtype=dtype, device=codes.device))


class _Int8Product(torch.autograd.Function):
    """x W^T + b for a frozen W in int8.

    Keeps the codes for the backward pass, which are there anyway, and neither x, which only a gradient of W needs, nor
    W: all matrices of gpt2-xl take 2.9 GB in bf16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return F.linear(x, dequantize(codes, scale, x.dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        codes, scale = ctx.saved_tensors
        return grad @ dequantize(codes, scale, grad.dtype), None, None, None


def adapters_of(model: nn.Module) -> dict[str, FrozenLinear]:
    """The matrices with an adapter by name, `h.0.attn.c_attn`, in the order of the network; {} without LoRA."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, FrozenLinear)}
    return {name: module for name, module in found.items() if module.lora_A is not None}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors by name, `h.0.attn.c_attn.lora_A`; {} without LoRA."""
    state = model.state_dict()
    return {
        f"{name}.{part}": state[f"{name}.{part}"]
        for name in adapters_of(model)
        for part in ("lora_A", "lora_B")
    }


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of the weights: the adapters where there are any, else all."""
    return adapter_state(model) or model.state_dict()


def load_trained(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `trained_state` gave for a model with the same adapters."""
    adapters = adapter_state(model)
    if not adapters:
        model.load_state_dict(state)
    for name, tensor in adapters.items():
        tensor.copy_(state[name])


def merged(base: GPT2, adapters: Mapping[str, Tensor], *, factor: float) -> Callable[[str], Tensor]:
    """The weights with factor B A added, each made in fp32 on the CPU when it is asked for by its name.

    `base` is what the network was made from, not what it keeps, which is rounded: so model/ is what any program makes
    of base and adapter/. `adapters` as `adapter_state` gives them, `factor` is alpha / rank. All at once would take 4
    bytes a weight, 6.2 GB for gpt2-xl, which trains in less.
    """
    weights: dict[str, Tensor] = base.state_dict()

    @torch.no_grad()
    def weight(name: str) -> Tensor:
        matrix = name.removesuffix(".weight")
        if f"{matrix}.lora_A" not in adapters:
            return weights[name].float()
        down, up = (adapters[f"{matrix}.{part}"].float().cpu() for part in ("lora_A", "lora_B"))
        return torch.addmm(weights[name].float(), up, down, alpha=factor)

    return weight
