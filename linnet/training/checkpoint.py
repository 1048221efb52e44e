"""Checkpoints: the state of a training on disk, whole or not there at all.

Why: a training dies in the middle of a save sooner or later, and a disk flips a bit. So a checkpoint is built in
a hidden folder, synced, given its name by one rename, read back, and only then are older ones removed. Loading
compares every byte with the manifest's sha256 and falls back to the newest checkpoint that is good.

How: `folder` is always the run's `checkpoints/`. In it, for each saved step:

    step-00000500/weights.safetensors    the parameters by name; the tied head once, as wte.weight
                  optimizer.safetensors  the optimizer's tensors, `<moment>.<parameter name>`
                  state.json             what else the loop needs (plain JSON)
                  manifest.json          format version, step, size and sha256 of the others; written last

Nothing here depends on device, precision or the number of ranks: tensors are stored as full CPU tensors. torch is
imported only to load one: the mirror's own process (linnet/mirror) lists and prunes without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet import files
from linnet.errors import DiskError, FormatVersionError, LinnetError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified. The tensors are on the CPU."""

    path: Path
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write `folder/step-<step>` and read it back; returns its path. One of the same step is replaced.

    Raises DiskError with the path and the bytes needed; what stood in `folder` before is then untouched.
    """
    final = folder / f"step-{step:08d}"
    try:
        with files.new_folder(final) as new:
            hashes = {
                WEIGHTS: files.write_safetensors(new / WEIGHTS, weights, metadata={"format": "pt"}),
                OPTIMIZER: files.write_safetensors(new / OPTIMIZER, optimizer, metadata={"format": "pt"}),
                STATE: files.write_json(new / STATE, state),
            }
            files.write_manifest(new, extra={"kind": "checkpoint", "step": step}, hashes=hashes)
    except DiskError as error:
        needed = checkpoint_bytes(weights, optimizer, state)
        raise DiskError(f"{error} The whole checkpoint of step {step} needs {needed:,} bytes.") from error
    try:
        files.verify_manifest(final)
    except LinnetError as error:
        raise DiskError(f"The checkpoint just written does not read back: {error} Check the disk.") from error
    return final


def checkpoint_bytes(
    weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> int:
    """The bytes that a checkpoint takes on disk: its data files, and 4,096 for the manifest."""
    tensors = sum(files.safetensors_bytes(part, metadata={"format": "pt"}) for part in (weights, optimizer))
    return tensors + len(files.json_bytes(state)) + 4096


def prune(folder: Path, *, newest: int, keep: int, best_step: int | None) -> None:
    """Remove old checkpoints: the `keep` newest up to step `newest` stay, and that of `best_step`.

    `newest` is the step just saved, that is, verified. Later steps are from a past that was given up (they
    were damaged, or the training went on from an earlier one), so they never count and are removed.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the newest checkpoint must stay")
    steps = saved_steps(folder)
    if newest not in steps:
        raise ValueError(f"step {newest} is not saved in {folder}; nothing is removed before it is")
    kept = {*[step for step in steps if step <= newest][-keep:], best_step}
    for step in steps:
        if step not in kept:
            files.remove_folder(folder / f"step-{step:08d}")


def load_newest(folder: Path, *, say: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; None if there is none at all. Clears what a crash left.

    Each damaged one is passed over and `say` gets a sentence that names the damaged file. If all are damaged,
    that is a LinnetError: to begin again silently would throw away the training. One of another format version is a
    FormatVersionError.
    """
    repair(folder)
    steps = saved_steps(folder)
    problems: list[str] = []
    for step in reversed(steps):
        try:
            checkpoint = load_checkpoint(folder / f"step-{step:08d}")
        except FormatVersionError:
            raise  # It is whole: going on from an older one would later remove it.
        except LinnetError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            say(f"{problem} Going on from the newest checkpoint that is whole, step {step}.")
        return checkpoint
    if problems:
        raise LinnetError(
            f"No checkpoint in {folder} is whole: {' '.join(problems)} "
            "Start again under another --run, or remove that folder to begin from step 0."
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; a LinnetError names the file that is missing or damaged."""
    manifest = files.verify_manifest(path)
    if manifest.get("kind") != "checkpoint":
        raise LinnetError(f"{path} is not a checkpoint: its {files.MANIFEST} belongs to something else.")
    step = manifest["step"]
    if path.name != f"step-{step:08d}":
        raise LinnetError(f"{path} is damaged: it holds the checkpoint of step {step}.")
    from safetensors.torch import load_file

    return Checkpoint(
        path=path,
        step=step,
        weights=load_file(path / WEIGHTS),
        optimizer=load_file(path / OPTIMIZER),
        state=json.loads((path / STATE).read_bytes()),
    )


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint in `folder`, rising; whether they are whole only loading can tell."""
    names = (path.name for path in folder.glob("step-*"))
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d{8,})", name)))


def repair(folder: Path) -> None:
    """Finish or undo what a crash cut off in `folder`."""
    for aside in sorted(folder.glob(".step-*.old")):
        files.repair_folder(folder / aside.name.removeprefix(".").removesuffix(".old"))
    files.remove_leftovers(folder)
