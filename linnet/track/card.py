"""model/README.md: the model card."""

from pathlib import Path


def write_card(root: Path, model: Path) -> None:
    """Write the card of the run `root` into the model folder `model`."""
