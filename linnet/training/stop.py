"""Ctrl-C and SIGTERM: finish nothing, lose nothing.

What   `StopSignals` remembers a signal; `check()` raises Stopped at a place where the state is whole.
Why    A signal handler that raises would leave an optimizer half updated or a checkpoint half written.
How    The loop calls `check` between micro-batches, the evaluation between batches. A second signal ends the
       process at once; checkpoints survive that as they survive kill -9.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from linnet.errors import Stopped

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopSignals:
    """Context in which SIGINT and SIGTERM are remembered; outside of the main thread it changes nothing."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self._received is not None:
            name = NAMES[signal.Signals(self._received)]
            raise Stopped(f"stopped by {name}; the same command goes on", signal_number=self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(128 + number)  # The second signal: now means now.
        self._received = number

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in NAMES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
