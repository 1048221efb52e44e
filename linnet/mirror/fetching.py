"""The run comes home from the mirror, where it is further there than here.

Why    A fresh machine has an empty runs/, a crashed one a damaged checkpoint: the newest good one of both counts.
How    Two halves. `fetch`, in the mirror's own process, brings the newest good checkpoint that is newer than the good
       ones at home, with rows, recipe, environment and model/ inside it, as one folder that appears by one rename.
       `unpack`, at each start, puts these in their places and then removes them from the checkpoint; cut off
       anywhere, the next start does it again. At the mirror nothing is written, it may be read-only; only where a kill
       cut off the replacement of its model/ that is ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from linnet import files
from linnet.errors import FormatVersionError, LinnetError
from linnet.files import operations
from linnet.mirror.copying import Tell, copy_file, copy_tree, is_whole, pieces, refuse_other_run, starts_of
from linnet.mirror.held import MODELS, REPORT, ROWS, RUN, SMALL, link_tree
from linnet.training.checkpoint import STATE, prune, repair, saved_steps


def fetch(
    root: Path, *, place: Path, name: str, recipe: str, tell: Tell, say: Callable[[str], None]
) -> int | None:
    """Bring the newest good checkpoint of `place/name` to the run `root`; None where that is not further.

    Args:
        recipe: the name of the recipe that is to be trained.
        tell: gets the number of bytes of each piece that was copied.
        say: gets a sentence for each checkpoint that is damaged and passed over.

    Raises:
        OSError: the mirror cannot be read.
        LinnetError: it holds another run or recipe; or nothing good is there, nor here.
    """
    folder = place / name
    if not place.exists():
        _look_into(place.parent)  # Raises where that is missing as well: a drive that is not mounted.
        return None
    _look_into(place)
    repair(root / "checkpoints")
    here = [step for step in saved_steps(root / "checkpoints") if is_whole(_checkpoint(root, step))][-1:]
    problems = []
    for step in reversed(saved_steps(folder / "checkpoints")):
        try:
            _refuse(folder, step=step, root=root, here=here, recipe=recipe)
            if here and step <= here[0]:
                return None
            say(f"Bringing step {step:,} from the mirror {folder} ...")
            _bring(folder, root, step=step, tell=tell)
        except FormatVersionError:
            raise
        except _Damaged as error:
            problems.append(str(error))
            say(f"{error} It is passed over.")
            continue
        return step
    if problems and not here:
        raise LinnetError(
            f"No checkpoint in {folder} is whole: {' '.join(problems)} Choose another --mirror to begin from step 0."
        )
    return None


def _look_into(folder: Path) -> None:
    """Raise where a folder cannot be listed; `glob` would find nothing there and not say why."""
    for _ in folder.iterdir():
        return


class _Damaged(Exception):
    """A checkpoint at the mirror that cannot be used."""


def _refuse(folder: Path, *, step: int, root: Path, here: list[int], recipe: str) -> None:
    """Raise where the mirror holds another recipe or another run than is asked for, or lies here."""
    checkpoint = _checkpoint(folder, step)
    try:
        theirs = json.loads((checkpoint / STATE).read_bytes())["recipe"]["name"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _Damaged(f"{checkpoint / STATE} cannot be read ({error}).") from None
    if theirs != recipe:
        raise LinnetError(
            f"{folder} holds a run of the recipe {theirs}, not {recipe}: choose another --mirror, or another name "
            "with --run."
        )
    if here:
        run = _checkpoint(root, here[0]) / RUN  # Brought home, and the process died before it was unpacked.
        ours = starts_of(run if run.is_dir() else root, step=here[0])
        refuse_other_run(starts_of(checkpoint / RUN, step=step), ours, folder=folder, root=root)


def _bring(folder: Path, root: Path, *, step: int, tell: Tell) -> None:
    with files.new_folder(_checkpoint(root, step)) as new:
        try:
            copy_tree(_checkpoint(folder, step), new, tell=tell)
            files.verify_manifest(new)
            files.verify_manifest(new / RUN)
            for name in MODELS:
                if not (folder / name).exists():
                    files.repair_folder(folder / name)  # A kill between the two renames of its replacement.
                if name == "model" or (folder / name).exists():
                    copy_tree(folder / name, model := new / RUN / name, tell=tell)
                    files.verify_manifest(model)
                    operations.unlink(model / files.MANIFEST)
            if (folder / REPORT).is_file():
                copy_file(folder / REPORT, new / RUN / REPORT, tell=tell)
        except FormatVersionError:
            raise
        except LinnetError as error:
            message = str(error)
            for name in MODELS:
                message = message.replace(f"{new / RUN / name}", f"{folder / name}")
            raise _Damaged(message.replace(f"{new}", f"{_checkpoint(folder, step)}")) from None


def unpack(root: Path, checkpoint: Path) -> None:
    """Put in place what came home inside of a checkpoint; does nothing for one that was saved here.

    The older checkpoints here go: they may be of a past that was given up, whose rows are not these.
    """
    run = checkpoint / RUN
    if not run.is_dir():
        return
    for name in (*ROWS, *SMALL, REPORT):
        if (run / name).is_file():
            files.write_file(root / name, pieces(run / name))
    for name in MODELS:
        if (run / name).is_dir():
            with files.new_folder(root / name) as new:
                link_tree(run / name, new)
    prune(checkpoint.parent, newest=int(checkpoint.name[5:]), keep=1, best_step=None)
    files.remove_folder(run)


def _checkpoint(root: Path, step: int) -> Path:
    return root / "checkpoints" / f"step-{step:08d}"
