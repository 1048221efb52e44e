"""One checkpoint, and what makes the run whole, from home to the mirror; runs in the mirror's own process.

Why    The mirror must at every moment hold a run that can be gone on with, whatever is cut off.
How    adapter/ and model/ first, then the checkpoint with its `run/`, then what only people read, then older ones are
       pruned. The same order as at home: between the first two, going on repeats the steps and ends in the same model/.
       Both are read back before their rename.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from linnet import files
from linnet.errors import FormatVersionError, LinnetError
from linnet.files import operations
from linnet.mirror.held import MODELS, REPORT, ROWS, RUN, SMALL
from linnet.training.checkpoint import STATE, prune, repair, saved_steps

CHUNK = 1 << 20  # Bytes that are copied between two signs of life.
SYNC_EVERY = 32 << 20  # Bytes; a drive that syncs 1.5 GB at once gives no sign of life for minutes.
CARD = {".md", ".png", ".svg"}  # In model/: what is written anew without a new model.

Tell = Callable[[int], None]
Start = dict[str, Any]


class MirrorError(LinnetError):
    """The mirror cannot take or give a copy now; the message is the middle of a sentence."""


def copy_run(
    held: Path, *, root: Path, place: Path, name: str, step: int, device: int | None, tell: Tell
) -> int:
    """Copy the checkpoint of `step` that `held` holds to `place/name`, unless it is there already.

    Args:
        root: the run at home, for messages.
        device: of `place` when it was reached before in this training; None at first.
        tell: gets the number of bytes of each piece that was copied.

    Returns:
        The device of `place`.

    Raises:
        OSError, DiskError: the mirror cannot be reached or written.
        LinnetError: it holds something that must not be overwritten.
    """
    device = _reach(place, name=name, device=device)
    folder, checkpoint = place / name, held / "checkpoint"
    checkpoints = folder / "checkpoints"
    _refuse(folder, starts=starts_of(held, step=step + 1), step=step, root=root)
    files.make_folder(checkpoints)
    repair(checkpoints)
    for model in MODELS:
        files.repair_folder(folder / model)
    files.remove_leftovers(folder)
    state = json.loads((checkpoint / STATE).read_bytes())
    for model in MODELS:
        copy_model(held / model, folder / model, tell=tell)
    final = checkpoints / f"step-{step:08d}"
    if not is_copy(checkpoint, final):
        with files.new_folder(final) as new:
            copy_tree(checkpoint, new, tell=tell)
            operations.mkdir(new / RUN)
            _copy_small(held, new / RUN, row_bytes=state["row_bytes"])
            files.write_manifest(new / RUN, extra={"kind": "run", "step": step})
            files.verify_manifest(new)
            files.verify_manifest(new / RUN)
    _copy_small(held, folder, row_bytes=state["row_bytes"])
    prune(
        checkpoints,
        newest=step,
        keep=state["recipe"]["train"]["keep"],
        best_step=state["loop"]["best_step"] or None,
    )
    return device


def copy_report(held: Path, folder: Path) -> None:
    """report.html; by itself, since its 5 MB may be too much where a small model is not."""
    if (held / REPORT).is_file():
        files.write_file(folder / REPORT, pieces(held / REPORT))


def _reach(place: Path, *, name: str, device: int | None) -> int:
    """The device of the mirror.

    Where a drive is not mounted its folder is missing, or lies empty on another device: nothing is created there, or
    the copies would fill the disk that they are to be safe from. DIR itself may be new, at the first contact alone.
    """
    if device is None and not place.exists() and place.parent.is_dir():
        operations.mkdir(place)
    here = place.stat().st_dev
    if device not in (None, here) and not (place / name).is_dir():
        raise MirrorError(f"{place} lies on another drive than before, and {name} is not on it")
    return here


def _refuse(folder: Path, *, starts: list[Start], step: int, root: Path) -> None:
    """Raise where `folder` holds something else than earlier copies of this run."""
    steps = saved_steps(folder / "checkpoints")
    if not steps:
        names = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
        if names and not (set(names) <= {*SMALL, *ROWS, REPORT, *MODELS, "checkpoints"}):
            raise LinnetError(
                f"{folder} holds something else than a run: choose another --mirror, or another name with --run."
            )
        return
    for copied in reversed(steps):
        run = folder / "checkpoints" / f"step-{copied:08d}" / RUN
        # A checkpoint without it was copied by hand, or trained there.
        if theirs := starts_of(run if run.is_dir() else folder, step=copied):
            break
    refuse_other_run(theirs, starts, folder=folder, root=root)
    for later in steps:
        if later > step and is_whole(folder / "checkpoints" / f"step-{later:08d}"):
            raise MirrorError(
                f"it is further ({later:,} steps) than this run ({step:,}), which was not known at its start"
            )


def refuse_other_run(theirs: list[Start], ours: list[Start], *, folder: Path, root: Path) -> None:
    """Raise unless one list of starts begins with the other: then one goes on from where the other was."""
    both = min(len(theirs), len(ours))
    if both and theirs[:both] == ours[:both]:
        return
    if both and theirs[0] == ours[0]:
        raise LinnetError(
            f"{root} and {folder} are one run that went on separately in both places, here since "
            f"{_time(ours, theirs)} and there since {_time(theirs, ours)}: move one of them away, or choose another "
            "--mirror."
        )
    raise LinnetError(
        f"{folder} holds another run than {root} (started {_time(theirs, [])}, this one {_time(ours, [])}): choose "
        "another --mirror, or give this run another name with --run."
    )


def _time(starts: list[Start], others: list[Start]) -> str:
    """When the first start was that the others do not know."""
    new = [start for start in starts if start not in others]
    return str(new[0].get("time", "at an unknown time")) if new else "at an unknown time"


def starts_of(folder: Path, *, step: int) -> list[Start]:
    """The starts in a folder's environment.json that had gone on to `step`; none where it cannot be read."""
    try:
        starts = json.loads((folder / "environment.json").read_bytes())["starts"]
        return [start for start in starts if start["step"] < step]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def is_whole(checkpoint: Path) -> bool:
    """Whether every byte of a checkpoint agrees with its manifest; of a newer format version it counts as whole."""
    try:
        files.verify_manifest(checkpoint)
    except FormatVersionError:
        return True
    except LinnetError:
        return False
    return True


def is_copy(checkpoint: Path, copy: Path) -> bool:
    """Whether a verified copy is there: the manifest carries the hash of everything."""
    try:
        theirs = files.read_manifest(copy)
        files.verify_manifest(copy / RUN)
    except LinnetError:
        return False
    return theirs == files.read_manifest(checkpoint)


def copy_model(source: Path, target: Path, *, tell: Tell) -> None:
    """model/ or adapter/ with a manifest, unless it is there already; of its card whatever has changed."""
    names = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    if not names:
        return
    card = [name for name in names if name.suffix in CARD]
    hashes = {name.as_posix(): files.sha256_file(source / name) for name in names if name not in card}
    try:
        listed = files.read_manifest(target)["files"]
        is_there = hashes == {name: entry["sha256"] for name, entry in listed.items()}
    except LinnetError:
        is_there = False
    if not is_there:
        with files.new_folder(target) as new:
            for file in hashes:
                copy_file(source / file, new / file, tell=tell)
            files.write_manifest(new, extra={"kind": "model"}, hashes=hashes)
            files.verify_manifest(new)
            for name in card:
                copy_file(source / name, new / name, tell=tell)
    else:
        for name in card:
            files.make_folder((target / name).parent)
            files.write_file(target / name, pieces(source / name))


def copy_tree(source: Path, target: Path, *, tell: Tell) -> None:
    """All files below `source` into the folder `target`."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy_file(path, target / path.relative_to(source), tell=tell)


def copy_file(source: Path, target: Path, *, tell: Tell) -> None:
    """One file, synced in steps; the folder is made where it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unsynced = 0
    with files.Writer(target) as out:
        for piece in pieces(source):
            out.write(piece)
            unsynced += len(piece)
            if unsynced >= SYNC_EVERY:
                operations.sync(target)
                unsynced = 0
            tell(len(piece))


def pieces(path: Path, *, size: int | None = None) -> Iterator[bytes]:
    """The first `size` bytes of a file, all if not given, in pieces."""
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left and (piece := file.read(min(CHUNK, left))):
            left -= len(piece)
            yield piece


def _copy_small(held: Path, folder: Path, *, row_bytes: dict[str, int]) -> None:
    """Recipe, environment, and the rows as far as the checkpoint knows them."""
    for name in (*SMALL, *ROWS):
        if (held / name).is_file():
            size = row_bytes.get(Path(name).stem)
            files.write_file(folder / name, pieces(held / name, size=size))
