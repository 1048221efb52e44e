"""How fast a step will be, from the speed of a bare matrix product.

What   `expected_speed(training)` in tokens/s: what this machine's products reach over the FLOP of a token, times a
       share.
Why    `linnet plan` says how long a training takes; to try some steps would need the model and the data.
How    Products are nearly all of a step's arithmetic. What a whole step reaches of their speed should differ less
       between machines than the speed itself: on a CPU it was measured once (docs/plan.md), on a card it is a guess.
"""

from __future__ import annotations

import time

import torch

from linnet.device import PRODUCTS
from linnet.training.memory import Training

SHARE_OF_PRODUCTS = {"cpu": 0.7, "cuda": 0.4}
SECONDS = 0.3  # Of products, to measure their speed.


def expected_speed(training: Training) -> tuple[float, str]:
    """Tokens/s, and where that comes from."""
    share, rate = SHARE_OF_PRODUCTS[training.device], product_speed(training.device, training.precision)
    how = f"{share:.0%} of the {rate / 1e9:,.0f} GFLOP/s that matrix products reach here just now"
    return share * rate / flops_per_token(training), how


def flops_per_token(training: Training) -> float:
    """Of a whole step: 2 for each weight of a product forward, 4 backward; attention; checkpointing's second forward.

    Of a frozen matrix the backward pass computes half.
    """
    model = training.model
    blocks = 12 * model.n_layer * model.n_embd**2
    head = model.vocab_size * model.n_embd
    attention = 6 * model.n_layer * training.block_size * model.n_embd  # Causal: half of the products count.
    passes = 4 if training.lora.rank else 6
    again = 2 * blocks * 2 / 3 if training.recompute else 0
    return passes * (blocks + head) + attention + again


def product_speed(device: str, precision: str) -> float:
    """FLOP/s of products of square matrices: 1,024 wide on a CPU, 4,096 on a card."""
    size = 1024 if device == "cpu" else 4096
    a = torch.ones(size, size, dtype=PRODUCTS[precision], device=device)
    b = torch.mm(a, a)  # The first one chooses its kernel.
    done, started, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < SECONDS:
        torch.mm(a, a, out=b)
        if device == "cuda":
            torch.cuda.synchronize()
        done, elapsed = done + 1, time.perf_counter() - started
    return done * 2 * size**3 / elapsed
