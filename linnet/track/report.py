"""report.html: a run as a page."""

from pathlib import Path


def write_report(root: Path) -> None:
    """Draw report.html of the run `root` anew."""
