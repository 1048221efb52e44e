"""Device, precision, threads and micro-batch: each a value with its reason.

What   `Choice(value, reason)`; the start of a run prints the choices as one table and keeps them in environment.json.
Why    Nobody should have to know that fp16 is 400 times slower than fp32 on a CPU. What changes the bits of a result
       follows processor features and shapes, never a stopwatch.
How    `choose_device()`, `choose_precision(...)`, `describe_machine()`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from linnet.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """A setting and why it is so."""

    value: Any
    reason: str


def choose_device() -> Choice:
    """CUDA where there is a card, else the CPU."""
    if torch.cuda.is_available():
        # Its backward pass with a mask gave gradients that are not finite in 2 of 60 steps (H200, torch 2.11, bf16);
        # the other kernels of scaled_dot_product_attention are as fast here.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return Choice("cuda", torch.cuda.get_device_name())
    return Choice("cpu", f"no CUDA card; {torch.get_num_threads()} threads on {cpu_name()}")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX-512 BF16 or AMX); elsewhere bf16 is emulated."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def choose_precision(requested: str, device: str) -> Choice:
    """Precision of the products: `fp32` or `bf16`, the fastest that the machine really has for "auto".

    Raises:
        UsageError: fp16 on CUDA, which needs loss scaling and is not there yet.
    """
    if device == "cuda":
        if requested == "fp16":
            raise UsageError("train.precision=fp16 is not supported yet on CUDA; take bf16 or fp32.")
        native = torch.cuda.get_device_capability() >= (8, 0)
        return _resolve(
            requested, native, "the card has bf16 tensor cores", "the card has no bf16 tensor cores"
        )
    if requested == "fp16":
        fallback = choose_precision("auto", device)
        return Choice(fallback.value, "fp16 is emulated on a CPU, some 400 times slower than fp32")
    return _resolve(
        requested, cpu_has_bf16(), "the CPU multiplies bf16 in hardware", "the CPU has no bf16 products"
    )


def _resolve(requested: str, native: bool, why: str, why_not: str) -> Choice:
    if requested != "auto":
        return Choice(requested, "asked for")
    return Choice("bf16", why) if native else Choice("fp32", why_not)


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """The context in which the network computes: bf16 products, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_memory() -> int:
    """Bytes that a training may still take: on the card, else of the machine's memory and this process's limit."""
    if torch.cuda.is_available():
        # Its backward pass with a mask gave gradients that are not finite in 2 of 60 steps (H200, torch 2.11, bf16);
        # the other kernels of scaled_dot_product_attention are as fast here.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return int(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def memory_gb(device: str) -> float:
    """Peak memory of this process so far, in 1e9 bytes: the allocator's on CUDA, else resident memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows has no resource module.
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def describe_machine() -> dict[str, Any]:
    """Versions and hardware for environment.json."""
    import linnet

    return {
        "linnet": linnet.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "memory_free_bytes": free_memory(),
    }
