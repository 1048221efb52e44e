"""The functions of kernels.c, where there are any: see there for what they do.

They are compiled when Linnet is installed, if there is a C compiler; who finds none takes torch's operations. They
share OpenMP's threads with torch, which is why they are not linked to OpenMP themselves: a second set of threads would
wait for the same cores.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

VERSION = 4
"""That of kernels.c: a library that was compiled of an earlier one is not called."""
CHANNELS = 16
"""The input channels of a product come in multiples of so many."""
PAIRED_CHANNELS = 64
"""And those of PAIRS of so many."""
HEAD_SIZE = 8
"""And the numbers of a head of so many."""


class Kind(IntEnum):
    """Of the weights of a product."""

    INT8 = 0
    FP16 = 1
    BF16 = 2
    FP32 = 3
    PAIRS = 4
    """bf16, and so is what they are multiplied with."""


@dataclass(frozen=True)
class Kernels:
    """What C calls `long` is 64 bits here; tensors are given by their `data_ptr()`, None is a null pointer."""

    product: Callable[..., None]
    """(x, y, rows, threads, w, kind, scale, bias, out, in)"""
    attend: Callable[..., None]
    """(qkv, out, table, texts, layer, heads, size, threads)"""
    gelu: Callable[..., None]
    """(x, count, threads)"""
    pairs: bool
    """Whether there are products of PAIRS."""


@cache
def kernels() -> Kernels | None:
    """None where they were not compiled, or where this CPU has no AVX2 with what belongs to it."""
    path = Path(__file__).with_name(f"_kernels{EXTENSION_SUFFIXES[0]}")
    capabilities = torch.cpu.get_capabilities()
    if not all(capabilities.get(name) for name in ("avx2", "fma3", "f16c")):
        return None
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        version = ctypes.c_int.in_dll(library, "linnet_version").value
        product, attend, gelu = library.linnet_product, library.linnet_attend, library.linnet_gelu
    except (OSError, AttributeError, ValueError):
        return None
    if version != VERSION:
        return None
    address, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
    product.argtypes = [address, address, size, number, address, number, address, address, size, size]
    attend.argtypes = [address, address, address, size, size, size, size, number]
    gelu.argtypes = [address, size, number]
    product.restype = attend.restype = gelu.restype = None
    pairs = bool(capabilities.get("avx512_bf16")) and _multiplies_pairs(product)
    return Kernels(product, attend, gelu, pairs)


def _multiplies_pairs(product: Callable[..., None]) -> bool:
    """Tried with whole numbers, which leave nothing to rounding: we had no processor with AVX-512 BF16 to test on."""
    x, w = (torch.arange(rows * 128).remainder(7).sub(3).bfloat16().view(rows, 128) for rows in (5, 34))
    y = torch.empty(5, 34)
    product(x.data_ptr(), y.data_ptr(), 5, 1, w.data_ptr(), Kind.PAIRS, None, None, 34, 128)
    return torch.equal(y, x.float() @ w.float().T)
