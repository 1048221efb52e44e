"""TensorBoard, Weights & Biases, trackio: places beside metrics.jsonl."""

from collections.abc import Callable, Sequence
from pathlib import Path


class Sinks:
    """Sends the rows of the run `root` to other programs, from `step` on."""

    def __init__(
        self, root: Path, *, names: Sequence[str], step: int, say: Callable[[str], None]
    ) -> None: ...

    def close(self) -> None:
        """Wait shortly for what is on its way."""
