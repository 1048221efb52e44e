"""A second place for a run: each checkpoint is copied there, and a run that was lost here goes on from there."""

from collections.abc import Callable
from pathlib import Path


class Mirror:
    """Copies checkpoints of the run `root` into `place`, beside the training."""

    def __init__(self, root: Path, place: Path, *, say: Callable[[str], None]) -> None:
        self.root, self.place, self.say = root, place, say

    def offer(self, step: int) -> None:
        """The checkpoint of `step` was saved."""

    def close(self) -> None:
        """Wait for the copy that is under way."""


def restore(root: Path, place: Path, *, say: Callable[[str], None]) -> None:
    """Bring the run back from `place` where it is further there."""
