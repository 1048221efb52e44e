"""GPT-2, the network: token ids go in, one vector per token comes out.

Why another one: it has to be read in a sitting, train fast on two cores, and equal the published GPT-2 to the
last rounding (pre-LN, learned positions, tanh-GELU, head tied to the token embedding, eps 1e-5). The names are
those of the published weights (`wte`, `wpe`, `h`, `ln_1`, `c_attn`, ...), so that loading is renaming and
transposing: transformers keeps these matrices as `Conv1D` [in, out], `nn.Linear` keeps [out, in].
How: `hidden = model(ids)`, then `model.logits(hidden)`; the loss (`linnet.model.loss`) never builds all logits.

Shapes: B rows (batch), T tokens of a row, C channels (`n_embd`), H heads, D = C / H, V vocabulary, L layers,
S room of the cache. Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.attention import Lengths, Pattern, attend, pattern_of, split_heads


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2. Defaults are those of the smallest published one, but for dropout (0.1 there)."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02  # standard deviation of the weights at the start

    def __post_init__(self) -> None:
        for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}, but must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}: "
                f"each head gets n_embd / n_head channels, so change one of the two"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}, but must be at least 0 and below 1")

    @property
    def parameters(self) -> int:
        """Number of weights; the tied head counts once (124,439,808 for `gpt2`)."""
        c = self.n_embd
        block = (4 * c) + (3 * c * c + 3 * c) + (c * c + c) + (4 * c * c + 4 * c) + (4 * c * c + c)
        return self.vocab_size * c + self.n_positions * c + self.n_layer * block + 2 * c


class KVCache:
    """Keys and values of the tokens seen so far, with room for `size` positions, allocated once.

    Bytes: 2 * n_layer * B * size * n_embd * bytes per number; `gpt2`, one row of 1,024 in fp32: 75 MB.
    """

    def __init__(
        self,
        config: GPT2Config,
        *,
        size: int,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, size, head_size)  # [L, B, H, S, D]
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.size = size
        self.length = 0  # positions filled; GPT2.forward moves it on

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the [B, H, T, D] keys and values of new tokens; return those of all tokens so far."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def clear(self) -> None:
        """Forget all tokens; the memory stays."""
        self.length = 0


class Linear(nn.Linear):
    """Not filled by torch: `GPT2.initialize` or a file does it (124 M numbers drawn for nothing take a second).

    Nor must it be filled on the `meta` device, where drawing imports torch's compiler: 1.1 s.
    """

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """Not filled by torch, as `Linear`."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Causal self-attention with H heads."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # q, k and v stacked
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, *, pattern: Pattern, cache: KVCache | None, layer: int) -> Tensor:
        qkv = self.c_attn(x)
        if cache is None:
            dropout = self.dropout if self.training else 0.0
            y = attend(qkv, pattern, n_head=self.n_head, dropout=dropout)
        else:
            q, k, v = split_heads(qkv, self.n_head)
            k, v = cache.extend(layer, k, v)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.mask, is_causal=pattern.causal)
            y = y.transpose(1, 2).reshape(x.shape)
        out: Tensor = self.c_proj(y)
        return out


def gelu(x: Tensor) -> Tensor:
    """tanh-GELU: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if x.device.type == "cpu":
        out: Tensor = _GeluOnCpu.apply(x)  # type: ignore[no-untyped-call]
        return out
    return F.gelu(x, approximate="tanh")


class _GeluOnCpu(torch.autograd.Function):
    """The same function as x s with s = sigmoid(2 u), for tanh(u) = 2 sigmoid(2 u) - 1, and its slope at once.

    torch's CPU kernel calls a slow tanh, in both directions. Forward and backward of 1,024 x 512 on one thread:
    1.2 ms instead of 2.2 ms in bf16, 1.0 instead of 2.0 in fp32. Keeps one tensor for the backward pass, as torch.
    """

    LINEAR = 2 * math.sqrt(2 / math.pi)
    CUBIC = LINEAR * 0.044715

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        linear = x.new_tensor(_GeluOnCpu.LINEAR)
        s = torch.addcmul(linear, x, x, value=_GeluOnCpu.CUBIC).mul_(x).sigmoid_()
        y: Tensor = x * s
        if ctx.needs_input_grad[0]:  # y' = s + (y - y s) (2 u)'
            slope = torch.addcmul(linear, x, x, value=3 * _GeluOnCpu.CUBIC)
            ctx.save_for_backward(slope.mul_(torch.addcmul(y, y, s, value=-1)).add_(s))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return grad * slope


class MLP(nn.Module):
    """Widen fourfold, tanh-GELU, narrow again."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, *, pattern: Pattern, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x), pattern=pattern, cache=cache, layer=layer))
        return x + self.drop(self.mlp(self.ln_2(x)))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


def run_block(block: nn.Module, x: Tensor, **rest: Any) -> Tensor:
    """block(x, **rest), of which backward keeps whatever it needs."""
    out: Tensor = block(x, **rest)
    return out


class GPT2(nn.Module):
    """The whole network. The same seed gives the same weights; on the `meta` device none are made."""

    def __init__(self, config: GPT2Config, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.run_block: Callable[..., Tensor] = run_block  # or `linnet.model.recompute.recomputed`
        device = torch.get_default_device()
        meta = device.type == "meta"
        with torch.device("meta" if meta else "cpu"):  # always on the CPU first: others draw other numbers
            self.wte = Embedding(config.vocab_size, config.n_embd)
            self.wpe = Embedding(config.n_positions, config.n_embd)
            self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if not meta:
            self.initialize(seed)
            self.to(device)

    @classmethod
    def without_weights(cls, config: GPT2Config) -> Self:
        """The modules on the `meta` device, for `load_state_dict(..., assign=True)`."""
        with torch.device("meta"):
            return cls(config)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """GPT-2's start: N(0, initializer_range), residual ones over sqrt(2 L); biases 0, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                shrink = math.sqrt(2 * self.config.n_layer) if residual else 1.0
                parameter.normal_(0.0, self.config.initializer_range / shrink, generator=generator)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        segments: Lengths | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the last norm.

        ids [B, T] int64. positions [B, T] int64; None counts up from 0, or from the end of the cache.
        segments: for each row the lengths of its examples (what they leave over is padding); tokens see earlier ones
        of their own example only; None: each row is one example. cache: holds the tokens before `ids`, takes these in.
        Returns [B, T, C]. ValueError if the tokens do not fit into `n_positions` or into the cache.
        """
        start = 0 if cache is None else cache.length
        end = start + ids.shape[1]
        room = self.config.n_positions if cache is None else min(cache.size, self.config.n_positions)
        if end > room:
            raise ValueError(f"{end} tokens do not fit into {room} positions (n_positions or the cache)")
        if segments is not None and cache is not None:
            raise ValueError("segments and cache exclude each other: a cache holds one example per row")

        x = self.wte(ids) + (self.wpe.weight[start:end] if positions is None else self.wpe(positions))
        if self.config.dropout and self.training:
            x = F.dropout(x, self.config.dropout)
        pattern = self.pattern(x, segments=segments, start=start, cached=cache is not None)
        for layer, block in enumerate(self.h):
            x = self.run_block(block, x, pattern=pattern, cache=cache, layer=layer)
        if cache is not None:
            cache.length = end
        out: Tensor = self.ln_f(x)
        return out

    def pattern(self, x: Tensor, *, segments: Lengths | None, start: int, cached: bool) -> Pattern:
        """Who may look at whom, the same in all layers; x [B, T, C] gives size, device and dtype."""
        device_type, config = x.device.type, self.config
        return pattern_of(
            (x.shape[0], x.shape[1]),
            lengths=segments,
            n_head=config.n_head,
            head_size=config.n_embd // config.n_head,
            dtype=torch.get_autocast_dtype(device_type)
            if torch.is_autocast_enabled(device_type)
            else x.dtype,
            device=x.device,
            dropout=config.dropout > 0 and self.training,
            start=start,
            cached=cached,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: hidden [..., C] -> [..., V], by the tied head."""
        return F.linear(hidden, self.wte.weight)
