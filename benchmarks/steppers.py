"""Whole optimizer steps of transformers and nanoGPT, and the machine's two roofs: what train_throughput.py compares.

What   `train_transformers` and `train_nanogpt` train in turns from given weights on given batches; `measure_roofs`
       multiplies matrices and copies memory.
Why    A step is forward, backward, clip, AdamW and zero_grad; what a peer's own training script does besides (logging,
       loading of data) is left out, in the peer's favour.
How    Each runs in the process of a candidate (turns.py). Nothing of Linnet is imported before torch, so that the
       peers' threads are as their users have them. Precision "bf16" is autocast, as both advise.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import Job
from torch import Tensor, nn
from turns import Turns, synchronize

NANOGPT_VOCABULARY = 50304  # its own default: GPT-2's 50,257, rounded up to 64
NEEDED_S = 0.15  # a product is repeated at least this long
COPIED_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean cross entropy of ids [B, T] with targets [B, T]."""


def train_transformers(turns: Turns, job: Job, *, precision: str, compiled: bool) -> None:
    """transformers' GPT-2 with its default attention and torch's fused AdamW, as its Trainer has it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.weights, dtype=torch.float32).to(job.device).train()
    called = torch.compile(model) if compiled else model

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        # Its own loss, with the targets of our rows instead of the row moved by one.
        out: Tensor = called(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False).loss
        return out

    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": job.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=job.learning_rate, betas=job.betas, fused=True)
    _train(turns, job, model, loss, optimizer, precision=precision)


def train_nanogpt(turns: Turns, job: Job, *, precision: str, compiled: bool) -> None:
    """nanoGPT's model.py with its own `configure_optimizers`, and the padded vocabulary that it trains with."""
    torch.backends.cuda.matmul.allow_tf32 = True  # as its train.py
    torch.backends.cudnn.allow_tf32 = True
    model = load_nanogpt(job)
    called = torch.compile(model) if compiled else model

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        out: Tensor = called(ids, targets)[1]
        return out

    optimizer = model.configure_optimizers(
        job.weight_decay, job.learning_rate, job.betas, torch.device(job.device).type
    )
    _train(turns, job, model, loss, optimizer, precision=precision)


def load_nanogpt(job: Job) -> Any:
    """Its network with our weights; the rows that pad the vocabulary are 0, worth 47 of 50,304 likely tokens."""
    from safetensors.torch import load_file

    path = Path(job.nanogpt or "") / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    shape = job.shape
    is_gpt2 = shape["vocab_size"] == 50257
    vocabulary = NANOGPT_VOCABULARY if is_gpt2 else shape["vocab_size"]
    sizes = {key: shape[key] for key in ("n_layer", "n_head", "n_embd")}
    config = module.GPTConfig(block_size=shape["n_positions"], vocab_size=vocabulary, dropout=0.0, **sizes)
    model = module.GPT(config)
    weights = load_file(Path(job.weights) / "model.safetensors")
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        for name, parameter in model.named_parameters():
            given = weights["transformer.wte.weight" if name == "lm_head.weight" else name]
            given = given.t() if given.shape == parameter.shape[::-1] and _is_conv1d(name) else given
            parameter[: len(given)] = given
    return model.to(job.device).train()


def _is_conv1d(name: str) -> bool:
    """transformers keeps these as [in, out], nanoGPT as [out, in]."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _train(
    turns: Turns, job: Job, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, *, precision: str
) -> None:
    """Step after step until no turn is left."""
    batches = np.load(job.batches, mmap_mode="r")
    parameters = list(model.parameters())
    going = turns.wait()
    step = 0
    while going:
        ids, targets = torch.from_numpy(np.array(batches[step])).to(job.device)
        bf16 = precision == "bf16"
        with torch.autocast(job.device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss(ids, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        going = turns.step(loss=value.detach(), tokens=ids.numel())


# -- the roofs -------------------------------------------------------------------------------------------------------


def measure_roofs(turns: Turns, job: Job) -> None:
    """In each turn: FLOP/s of the fastest product of a step in fp32 and bf16, and bytes/s of a copy.

    A CPU without bf16 products has no roof for them: one emulated product takes 12 s on two cores.
    """
    from linnet.device import cpu_has_bf16

    going = turns.wait()
    dtypes = DTYPES if job.device != "cpu" or cpu_has_bf16() else {"fp32": torch.float32}
    while going:
        roofs = {name: best_product(job, dtype=dtype) for name, dtype in dtypes.items()}
        going = turns.step(**roofs, bytes=copy_speed(job.device))


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_product(job: Job, *, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest product among those of a step: of the layers, of the head, of their gradients."""
    tokens, c, v = job.rows * job.block_size, job.shape["n_embd"], job.shape["vocab_size"]
    best = 0.0
    for rows, inner, columns in ((tokens, c, 3 * c), (tokens, c, 4 * c), (tokens, 4 * c, c), (tokens, c, v)):
        if rows * columns > 1 << 25:
            rows = max(1, (1 << 25) // columns)  # a part of the head
        x = torch.randn(rows, inner, device=job.device).to(dtype)
        weight = torch.randn(columns, inner, device=job.device).to(dtype)
        slope = torch.randn(rows, columns, device=job.device).to(dtype)
        work = 2 * rows * inner * columns
        products: tuple[Callable[[], Tensor], ...] = (
            lambda x=x, w=weight: nn.functional.linear(x, w),
            lambda s=slope, w=weight: s @ w,
            lambda s=slope, x=x: s.t() @ x,
        )
        best = max(best, *(work / seconds_of(product) for product in products))
    return best


def copy_speed(device: str) -> float:
    """Bytes that are read and written in a second when a large block of memory is copied."""
    size = COPIED_BYTES[torch.device(device).type]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source))


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes, by its fastest of several groups of calls."""
    work()
    calls, fastest, spent = 1, float("inf"), 0.0
    while spent < NEEDED_S:
        synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize()
        seconds = time.perf_counter() - started
        spent += seconds
        fastest = min(fastest, seconds / calls)
        calls = max(calls, min(100, int(0.02 / fastest)))  # groups of some 20 ms: a card's queue is filled
    return fastest
