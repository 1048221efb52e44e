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
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

CHANNELS = 16
"""The input channels of a product come in multiples of so many."""
HEAD_SIZE = 8
"""And so do the numbers of a head."""


@dataclass(frozen=True)
class Kernels:
    """What C calls `long` is 64 bits here; tensors are given by their `data_ptr()`, None is a null pointer."""

    product: Callable[..., None]
    """(x, y, rows, threads, w, bytes, scale, bias, out, in)"""
    attend: Callable[..., None]
    """(qkv, out, table, texts, layer, heads, size, threads)"""


@cache
def kernels() -> Kernels | None:
    """None where they were not compiled, or where this CPU has no AVX2."""
    path = Path(__file__).with_name(f"_kernels{EXTENSION_SUFFIXES[0]}")
    if not torch.cpu.get_capabilities().get("avx2"):
        return None
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        product, attend = library.linnet_product, library.linnet_attend
    except (OSError, AttributeError):
        return None
    address, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
    product.argtypes = [address, address, size, number, address, number, address, address, size, size]
    attend.argtypes = [address, address, address, size, size, size, size, number]
    product.restype = attend.restype = None
    return Kernels(product, attend)
