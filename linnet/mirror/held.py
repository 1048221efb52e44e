"""What is to be copied, held still while the training goes on.

Why    A copy to a slow drive takes minutes. Meanwhile the run prunes checkpoints and replaces model/.
How    Hard links: no byte is copied, and a file lives as long as one of its names. Files of a run are replaced by a
       rename, never changed in place, but for the rows, which only grow. Where the disk knows no hard links the
       files are copied, which costs as much as saving them did.
"""

import os
import shutil
from pathlib import Path

NAME = ".mirror.tmp"  # In the run folder; of such a name are the leftovers that the next start removes.
ROWS = ("metrics.jsonl", "samples.jsonl")
SMALL = ("recipe.toml", "environment.json")
REPORT = "report.html"
MODELS = ("adapter", "model")  # In the order in which a run writes them; adapter/ is there with LoRA alone.
RUN = "run"  # In a checkpoint at the mirror: the small files that belong to it.


def hold(root: Path, held: Path, *, step: int) -> None:
    """Fill the new folder `held` with the checkpoint of `step` and the run's other files as they are now."""
    shutil.rmtree(held, ignore_errors=True)
    held.mkdir(parents=True)
    for name in (*SMALL, *ROWS, REPORT):
        if (root / name).is_file():
            link(root / name, held / name)
    for name in MODELS:
        link_tree(root / name, held / name)
    link_tree(root / "checkpoints" / f"step-{step:08d}", held / "checkpoint")


def link_tree(source: Path, target: Path) -> None:
    """`target` becomes a folder of links to the files of `source`; of nothing if that does not exist."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            link(path, copy)


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the disk knows no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def release(held: Path) -> None:
    """Let go. What cannot be removed now goes at the next start."""
    shutil.rmtree(held, ignore_errors=True)
