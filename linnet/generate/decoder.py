"""The network, for writing: the same GPT-2 as `linnet.model.gpt2`, one short pass for each new token.

What   `Decoder` holds the weights in the precision that is asked for, `Memory` the keys and values of one text.
       `read` takes in a piece of a prompt, `decode` the newest id of several texts, and scores what may come next.
Why    Training wants gradients and large products, writing wants few calls and few bytes. And what a text says must not
       depend on its neighbours: the same seed gives the same tokens alone or in a batch, with a warm or cold prompt
       cache.
How    Products go over the rows of all texts at once, attention over each text by itself. Whatever could change the
       rounding depends on the text alone: prompts are read in chunks that begin at multiples of CHUNK, and a product
       whose rounding depends on the number of its rows gets a multiple that rounds alike (`Decoder.fixed_rows`).

Shapes: B texts, N tokens, C channels (`n_embd`), H heads, D = C / H, V vocabulary, L layers, S room of a memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.device import cpu_has_bf16
from linnet.generate.kernels import CHANNELS, HEAD_SIZE, Kernels, kernels
from linnet.generate.products import Precision, Product, make_product
from linnet.model.gpt2 import GPT2, Block, GPT2Config

# Queries that attend at once; what a prompt cache keeps are whole chunks.
CHUNK = 64
# Most tokens that are read in a pass, and in a step of a batch: others who write wait for no longer than that.
MOST_READ = 4 * CHUNK
# So many numbers torch's GELU does not share among threads. It rounds the ends of their shares in another way, and
# where those are depends on the number of rows.
ONE_SHARE = 16_000

Attend = Callable[[int, Tensor], Tensor]
"""A layer's number and its queries, keys and values [N, 3 * C] -> [N, C]."""


class Memory:
    """Keys and values of one text, with room for `size` tokens, allocated once: [L, 2, H, S, D].

    Bytes: 2 * n_layer * S * n_embd * bytes per number; `gpt2`, 1,024 tokens in fp32: 75 MB. What was never written
    takes no memory.
    """

    def __init__(self, config: GPT2Config, *, size: int, like: Tensor) -> None:
        head_size = config.n_embd // config.n_head
        self.kept = like.new_empty(config.n_layer, 2, config.n_head, size, head_size)
        self.size = size
        self.length = 0  # Tokens in there; `Decoder` moves it on.

    def chunk(self, number: int) -> Tensor:
        """[L, 2, H, CHUNK, D]: what a prompt cache keeps."""
        return self.kept[:, :, :, number * CHUNK : (number + 1) * CHUNK]


class Decoder:
    """The weights of a network, only read. In fp32 they are those of the network itself, where it is in fp32.

    `together`: several texts may be written at once.
    """

    def __init__(self, network: GPT2, *, precision: Precision = "fp32", together: bool = False) -> None:
        self.config = network.config
        self.precision = precision
        self.device = network.wte.weight.device
        self.head_size = self.config.n_embd // self.config.n_head
        on_cpu = self.device.type == "cpu"
        fits = self.config.n_embd % CHANNELS == 0 and self.head_size % HEAD_SIZE == 0
        self.compiled = kernels() if on_cpu and fits else None
        half = precision == "bf16" or (precision == "int8" and (not on_cpu or cpu_has_bf16()))
        self.dtype = torch.bfloat16 if half and not self.compiled else torch.float32
        if precision == "fp16" and not on_cpu:
            self.dtype = torch.float16
        make = partial(make_product, precision=precision, dtype=self.dtype, compiled=self.compiled)
        self.head = make(network.wte.weight, None)
        self.fixed_rows = self.head.alike if together else 1  # Its other matrices are of the same kind.
        self.positions = network.wpe.weight.detach().to(self.dtype)
        self.last_norm = _Norm(network.ln_f, self.dtype)
        blocks = cast("Iterable[Block]", network.h)
        self.layers = [_Layer(block, make=make, dtype=self.dtype, compiled=self.compiled) for block in blocks]

    def memory(self, *, room: int) -> Memory:
        """For a text of at most `room` tokens, or as many as the window has."""
        return Memory(self.config, size=min(room, self.config.n_positions), like=self.positions)

    def read(self, ids: Sequence[int], memory: Memory) -> Tensor:
        """Take in the ids [N] that follow what is in `memory`, which ends at a multiple of CHUNK.

        At most MOST_READ. Returns hidden states [N, C] after the last norm.
        """
        start, end = memory.length, memory.length + len(ids)
        parts = []
        for first, last in pairwise(self._passes(start, end)):
            parts.append(self._read(ids[first - start : last - start], memory))
        return torch.cat(parts)

    def decode(self, ids: Sequence[int], memories: Sequence[Memory]) -> Tensor:
        """Take in one id of each text [B] and score the tokens after it: [B, V] in fp32, on the CPU."""
        count = len(ids)
        padding = -count % self.fixed_rows
        places = [memory.length for memory in memories]
        numbers = torch.tensor([list(ids) + [0] * padding, places + [0] * padding], device=self.device)
        attend = (self._compiled_attention if self.compiled else self._attention)(memories, places)
        x = self.head.rows(numbers[0]) + self.positions[numbers[1]]
        for number, layer in enumerate(self.layers):
            x = layer.few(x, attend=attend, number=number)
        for memory in memories:
            memory.length += 1
        return self.head.few(self.last_norm(x))[:count].float().cpu()

    def _attention(self, memories: Sequence[Memory], places: Sequence[int]) -> Attend:
        """Of the newest token of each text, one text after the other."""
        n_head, head_size = self.config.n_head, self.head_size

        def attend(layer: int, qkv: Tensor) -> Tensor:
            heads = qkv.view(-1, 3, n_head, 1, head_size)
            out = qkv.new_zeros(len(qkv), n_head, 1, head_size)
            for text, (memory, place) in enumerate(zip(memories, places, strict=True)):
                kept = memory.kept[layer]
                kept[:, :, place] = heads[text, 1:, :, 0]
                out[text] = _attend(heads[text, :1], kept[:, :, : place + 1])
            return out.view(len(qkv), -1)

        return attend

    def _compiled_attention(self, memories: Sequence[Memory], places: Sequence[int]) -> Attend:
        """The same of all texts in one call."""
        assert self.compiled is not None
        call, threads = self.compiled.attend, torch.get_num_threads()
        count, n_head, head_size = len(memories), self.config.n_head, self.head_size
        assert all(place < memory.size for memory, place in zip(memories, places, strict=True))
        # Where each memory is, how many tokens it has room for, and the place of the new one.
        table = torch.tensor([[m.kept.data_ptr() for m in memories], [m.size for m in memories], places])

        def attend(layer: int, qkv: Tensor) -> Tensor:
            out = qkv.new_zeros(len(qkv), n_head * head_size)
            pointers = (tensor.data_ptr() for tensor in (qkv, out, table))
            call(*pointers, count, layer, n_head, head_size, threads)
            return out

        return attend

    def scores(self, hidden: Tensor) -> Tensor:
        """hidden [N, C] -> [N, V] in fp32: of a prompt, all at once."""
        return self.head.many(hidden).float()

    def _passes(self, start: int, end: int) -> list[int]:
        """Where passes begin and end: whole chunks together, then the rest.

        Products of whole chunks round alike, however many there are. The rest is apart even where it would fit, so
        that its rows are as many as with a warm cache.
        """
        return sorted({start, max(start, end // CHUNK * CHUNK), end})

    def _read(self, ids: Sequence[int], memory: Memory) -> Tensor:
        start, end = memory.length, memory.length + len(ids)
        edges = [*range(start, end, CHUNK), end]
        masks = [_causal(last - first, last, like=self.positions) for first, last in pairwise(edges)]
        n_head, head_size = self.config.n_head, self.head_size

        def attend(layer: int, qkv: Tensor) -> Tensor:
            heads = qkv.view(len(ids), 3, n_head, head_size).permute(1, 2, 0, 3)  # [3, H, N, D]
            kept = memory.kept[layer]
            kept[:, :, start:end] = heads[1:]
            out = torch.empty_like(heads[0])
            for (first, last), mask in zip(pairwise(edges), masks, strict=True):
                q = heads[:1, :, first - start : last - start]
                out[:, first - start : last - start] = _attend(q, kept[:, :, :last], mask=mask)
            return out.transpose(0, 1).reshape(len(ids), -1)

        x = self.head.rows(torch.tensor(ids, device=self.device)) + self.positions[start:end]
        few = len(ids) < CHUNK // 2  # A rest; widening all weights would take longer.
        for number, layer in enumerate(self.layers):
            x = (layer.few if few else layer.many)(x, attend=attend, number=number)
        memory.length = end
        return self.last_norm(x)


class _Norm:
    def __init__(self, norm: torch.nn.LayerNorm, dtype: torch.dtype) -> None:
        self.weight, self.bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class _Layer:
    """A block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, block: Block, *, make: Callable[..., Product], dtype: torch.dtype, compiled: Kernels | None
    ) -> None:
        self.ln_1, self.ln_2 = _Norm(block.ln_1, dtype), _Norm(block.ln_2, dtype)
        self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj = (
            make(linear.weight, linear.bias)
            for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        )

        self.compiled = compiled

    def few(self, x: Tensor, *, attend: Attend, number: int) -> Tensor:
        x = x + self.attn_proj.few(attend(number, self.c_attn.few(self.ln_1(x))))
        return x + self.mlp_proj.few(self._gelu(self.c_fc.few(self.ln_2(x))))

    def many(self, x: Tensor, *, attend: Attend, number: int) -> Tensor:
        x = x + self.attn_proj.many(attend(number, self.c_attn.many(self.ln_1(x))))
        return x + self.mlp_proj.many(self._gelu(self.c_fc.many(self.ln_2(x))))

    def _gelu(self, x: Tensor) -> Tensor:
        """Of numbers that nobody else needs."""
        if self.compiled is None:
            parts = torch.split(x, max(1, ONE_SHARE // x.shape[1])) if x.device.type == "cpu" else (x,)
            return torch.cat([F.gelu(part, approximate="tanh") for part in parts])
        self.compiled.gelu(x.data_ptr(), x.numel(), torch.get_num_threads())
        return x


def _attend(q: Tensor, kept: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """q [1, H, N, D], keys and values [2, H, S, D] -> [H, N, D].

    All with four dimensions: with three, torch takes plain products, which needs two to three times as long (one query
    and 150 keys on a CPU: 68 and 34 us).
    """
    return F.scaled_dot_product_attention(q, kept[:1], kept[1:], attn_mask=mask)[0]


def _causal(queries: int, keys: int, *, like: Tensor) -> Tensor:
    """[Q, K], added to the scores: the last query sees all keys, the one before it all but the last, ..."""
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril_(keys - queries)
    return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill_(~allowed, -torch.inf)
