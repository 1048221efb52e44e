"""Errors that speak to the user: one sentence that says what, where, and what to do.

`linnet.__main__.main` prints the message without a traceback and exits with `exit_code`. From Python they are
ordinary exceptions; all but `Stopped` are ValueErrors.
"""

import signal
from typing import Self


class LinnetError(ValueError):
    """A mistake in the input that the user can mend."""

    exit_code = 1


class FormatVersionError(LinnetError):
    """Something on disk was written by another version of Linnet; it is whole, so it must not count as damaged."""


class UsageError(LinnetError):
    """A wrong command line: an unknown key, a value of the wrong type."""

    exit_code = 2


class DivergedError(LinnetError):
    """The training does not converge any more: the loss or the gradients are not finite."""

    exit_code = 3


class DiskError(LinnetError):
    """A write failed: disk full, quota, file size limit, input/output error."""

    exit_code = 4


class OutOfMemoryError(LinnetError):
    """The work does not fit into memory."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python had no memory left: on a card, or where the system refuses more.

    oneDNN, which multiplies bf16 on a CPU, only says that it could not do its work.
    """
    text = str(error)
    words = ("out of memory", "can't allocate memory", "std::bad_alloc", "STATUS_ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or any(word in text for word in words)
        or text
        in (
            "could not create a primitive",
            "could not execute a primitive",
            "could not create a memory object",
        )
    )


class RunLockedError(LinnetError):
    """Another process works on this run."""

    exit_code = 6


class Stopped(Exception):
    """A signal stopped the training; its state is saved.

    `exit_code` is 128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number

    @classmethod
    def by(cls, signal_number: int) -> Self:
        """A training that this signal stopped."""
        name = "Ctrl-C" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        return cls(f"stopped by {name}; the same command goes on", signal_number=signal_number)
