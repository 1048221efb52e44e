"""A model that lies in shares on all ranks: fsdp, torch's fully_shard.

What   `shard` splits a network; `local`, `total`, `whole` and `fill` go between a tensor and its shares.
Why    Weights, gradients and two moments take 16 bytes a parameter on each card. In shares they take 16 / ranks.
How    Each block is gathered when it is needed and let go behind that. Embeddings and the last norm stay gathered from
       the forward to the backward pass: the loss takes the head, `wte.weight`, outside of `forward`. Gradients are
       summed, not averaged: the loop divides by the step's learned tokens. Each tensor is cut along its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from linnet.config import Recipe
from linnet.device import Choice
from linnet.errors import UsageError
from linnet.training.ranks import Ranks

if TYPE_CHECKING:
    from linnet.model.gpt2 import GPT2

BYTES_PER_PARAMETER = 16  # Weight, gradient, two moments: 4 bytes each.
USABLE = 0.8  # Of the free memory; the rest is for activations.


def choose_parallel(recipe: Recipe, *, parameters: int, free: int) -> Choice:
    """`ddp` or `fsdp` for several processes, each with `free` bytes of memory.

    Raises:
        UsageError: train.parallel=fsdp with something that needs whole matrices.
    """
    wanted = recipe.train.parallel
    whole_for = _whole_for(recipe)
    if wanted == "fsdp" and whole_for:
        raise UsageError(
            f"train.parallel=fsdp cuts each matrix into shares, and {whole_for} needs it whole; set train.parallel=ddp."
        )
    if wanted != "auto":
        return Choice(wanted, "asked for")
    if whole_for:
        return Choice("ddp", f"{whole_for} needs each matrix whole")
    if BYTES_PER_PARAMETER * parameters <= USABLE * free:
        return Choice("ddp", "weights, gradients and moments fit whole")
    return Choice("fsdp", "weights, gradients and moments do not fit whole")


def _whole_for(recipe: Recipe) -> str:
    """The setting that needs whole matrices; "" for none."""
    if recipe.train.optimizer == "muon":
        return "train.optimizer=muon"
    if recipe.model.lora.rank:
        return f"model.lora.rank={recipe.model.lora.rank}"
    return "train.offload=on" if recipe.train.offload == "on" else ""


def shard(model: GPT2, ranks: Ranks) -> None:
    """Leave each rank its share of the parameters, in place, on the rank's device. All ranks have the same `model`."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    from linnet.training.several import Several

    assert isinstance(ranks, Several)
    mesh = DeviceMesh.from_group(ranks.group, ranks.device)
    for block in model.h:
        fully_shard(block, mesh=mesh)
    root = fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other.
    ranks.lockstep = True
    with torch.no_grad():  # The samples' inference mode must not be the first to make the gathered tensors.
        model(torch.zeros(1, 1, dtype=torch.int64, device=ranks.device))
    root.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, asked without importing what they are made of."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's share, on the same memory; of an ordinary tensor all of it."""
    sharded: Any = tensor
    share: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return share


def total(tensor: Tensor) -> Tensor:
    """What all shares together make of a number; all ranks must take part. Of an ordinary tensor the tensor."""
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return full


def whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Put the shares together, one tensor after the other, in the machine's memory; all ranks must take part.

    `keep`: whether this rank wants them; {} if not.
    """
    kept = {}
    for name, tensor in tensors.items():
        full = total(tensor)
        if keep:
            kept[name] = full.detach().cpu()
    return kept


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy `values`, which are whole, into a tensor that may lie in shares."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = tensor
        mesh = sharded.device_mesh
        values = distribute_tensor(values.to(mesh.device_type), mesh, sharded.placements, src_data_rank=None)
    tensor.copy_(values)
