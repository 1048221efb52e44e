"""Tensors into a safetensors file, streamed.

Why our own writer: the upstream one builds the whole file in memory (1.5 GB more for GPT-2's training state),
does not sync, and a test cannot make it fail half-way. The format is small: an 8-byte length, a JSON header
(name -> dtype, shape, data_offsets), the raw little-endian buffers. Reading stays with the upstream library.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet.files.single import Writer

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, "Tensor"],
    *,
    metadata: Mapping[str, str],
    value: "Callable[[str], Tensor] | None" = None,
) -> str:
    """Write tensors as a safetensors file, straight to `path`; returns the file's sha256 in hex.

    The same tensors always give the same bytes. Only a tensor that is not contiguous on the CPU is copied, and
    one at a time. Two names for one tensor (a tied weight) are a ValueError.

    `value`: makes each tensor when it is written, so that memory never holds all; `tensors` may then be on the meta
    device, which knows types and shapes.
    """
    import torch

    value = value or tensors.__getitem__
    names, header = _header(tensors, metadata)
    with Writer(path, needed=len(header) + _payload(tensors)) as out:
        out.write(header)
        for name in names:
            out.write(value(name).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return out.sha256


def safetensors_bytes(tensors: Mapping[str, "Tensor"], *, metadata: Mapping[str, str]) -> int:
    """The size in bytes of the file that `write_safetensors` would write."""
    return len(_header(tensors, metadata)[1]) + _payload(tensors)


def _payload(tensors: Mapping[str, "Tensor"]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _header(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The names in file order (wide types first, so that each is aligned) and the bytes before the data."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    seen: dict[int, str] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        twin = seen.setdefault(tensor.data_ptr(), name) if tensor.data_ptr() else name  # 0: empty, or meta
        if twin != name:
            raise ValueError(f"{twin} and {name} are one tensor; write it under one name")
        end = offset + tensor.numel() * tensor.element_size()
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return names, len(text).to_bytes(8, "little") + text
