"""Device, precision, threads and micro-batch: each a value with its reason.

What   `Choice(value, reason)`; the start of a run prints the choices as one table and keeps them in environment.json.
Why    Nobody should have to know that fp16 is 400 times slower than fp32 on a CPU. What changes the bits of a result
       follows processor features and shapes, never a stopwatch.
How    `choose_device()`, `choose_precision(...)`, `choose_writing_precision(...)`, `describe_machine()`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ENDLESS = 1 << 60  # Bytes.
PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """A setting and why it is so."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Machine:
    """Where a training runs."""

    device: Choice
    precision: Choice
    free: int
    """Bytes that it may take: on the card, or of the machine's memory."""
    host: int = ENDLESS
    """Bytes of the machine's memory, of which offload takes; without end where the machine is not this one."""


def this_machine(precision: str) -> Machine:
    """This one, for the requested precision."""
    device = choose_device()
    return Machine(
        device, choose_precision(precision, device.value), free_memory(), free_host_memory(unknown=ENDLESS)
    )


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
    """Precision of the products: the fastest that the machine really has for "auto"."""
    if requested == "fp16" and device == "cpu":
        fallback = choose_precision("auto", device)
        return Choice(fallback.value, "fp16 is emulated on a CPU, some 400 times slower than fp32")
    if requested != "auto":
        return Choice(requested, "asked for")
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        if capability >= (8, 0):
            return Choice("bf16", "the card has bf16 tensor cores")
        if capability >= (7, 0):
            return Choice("fp16", "the card has tensor cores for fp16, none for bf16; the loss is scaled")
        return Choice("fp32", "the card has no tensor cores")
    if cpu_has_bf16():
        return Choice("bf16", "the CPU multiplies bf16 in hardware")
    return Choice("fp32", "the CPU has no bf16 products")


def choose_writing_precision(requested: str) -> Choice:
    """What the weights of a model that only writes are held in: fp32, bf16, fp16 or int8.

    For "auto" the fastest that is as good as fp32. Writing reads all weights for each token, so fewer bytes are faster.
    int8 is quicker still than 16 bits, but changes what a model writes: who wants it asks for it (docs/performance.md),
    or has a CPU for which torch has nothing in 16 bits.
    """
    if requested != "auto":
        return Choice(requested, "asked for")
    if torch.cuda.is_available():
        if torch.cuda.get_device_capability() >= (8, 0):
            return Choice("bf16", "the card has bf16 tensor cores")
        return Choice("fp32", "the card has no bf16 tensor cores")
    if cpu_has_bf16():
        return Choice("bf16", "the CPU multiplies bf16 in hardware")
    if "fbgemm" in torch.backends.quantized.supported_engines:
        return Choice(
            "fp16", "the CPU has no bf16 products, and weights of 16 bits are read in half the time"
        )
    return Choice("int8", "the CPU has no bf16 products, and weights of 8 bits are read soonest")


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """The context in which the network computes: products in 16 bits, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=PRODUCTS[precision])


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next tensors (glibc; elsewhere nothing happens).

    By default each large tensor is fetched from the system anew, page by page, and filled with zeros: 6 to 7 % of a
    training step of GPT-2 124M on a CPU.
    """
    trim_threshold, map_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)  # never
        libc.mallopt(map_threshold, 2**31 - 1)


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
    """Bytes that a training may still take: on the card, else of the machine's memory."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        allowed = torch.cuda.get_per_process_memory_fraction() * total - torch.cuda.memory_allocated()
        return int(min(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated(), allowed))
    return free_host_memory(unknown=4 << 30)


def free_host_memory(*, unknown: int) -> int:
    """Bytes of the machine's memory that a training may still take; `unknown` where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable"):
                return min([int(line.split()[1]) * 1024, *_free_of_groups()])
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return unknown


def _free_of_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the control groups of this process, as containers and job schedulers set them, still allow (cgroup v2).

    Pages of files count as taken there, and are given back when they are needed.
    """
    try:
        line = next(line for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    group = root / line.removeprefix("0::").strip("/")
    free = []
    for folder in (group, *group.parents):
        try:
            limit = int((folder / "memory.max").read_text(encoding="ascii"))
            taken = int((folder / "memory.current").read_text(encoding="ascii"))
            counts = dict(
                row.split() for row in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
            free.append(max(0, limit - taken + int(counts.get("inactive_file", 0))))
        except (OSError, ValueError):  # No such file at the root; "max" is no limit.
            continue
    return free


def memory_gb(device: str) -> float:
    """Peak memory of this process so far, in 1e9 bytes: the allocator's on CUDA, else resident memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    try:  # Linux. There `ru_maxrss` begins with the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        pass
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
