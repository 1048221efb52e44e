"""A row while it is on its way from a file to the token store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Record(NamedTuple):
    """A row as it was read: its columns. A line of plain text is {"text": line}."""

    values: Mapping[str, Any]
    line: int
    """From 1, in the part of the file that was read; of Parquet the row."""
    byte: int
    """Where it begins in the file (of a compressed one: in its content)."""


class BadRecord(NamedTuple):
    """A row that cannot be read, and why."""

    reason: str
    line: int
    byte: int


class Unusable(ValueError):
    """A row that was read and does not fit its format; the message says why and goes to quarantine.jsonl."""


@dataclass(frozen=True)
class Window:
    """One example: `[end-of-text] + ids`, one learn flag for each id; at most `size` ids."""

    ids: npt.NDArray[np.uint32]
    learn: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoded:
    """What became of a row."""

    windows: list[Window]
    source_tokens: int
    """Tokens of the row's contents, without headers and end-of-text."""
    present_tokens: int
    """Those of them that are in at least one window."""
    shortened: bool
    """What is only read was shortened."""
