"""Ctrl-C and SIGTERM: finish nothing, lose nothing.

What   `StopSignals` remembers a signal; `check()` raises Stopped at a place where the state is whole.
Why    A signal handler that raises would leave an optimizer half updated or a checkpoint half written.
How    The loop calls `check` between micro-batches, the evaluation `check_together` between batches. A second signal
       ends the process at once; checkpoints survive that as they survive kill -9.
       Of several processes each sees the signal at another moment, or only one gets it. They meet in the sum of each
       step. One with a signal goes there at once, without the rest of its micro-batches, and all raise Stopped there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from linnet.training.ranks import ALONE, Ranks

# One signal may come twice: from whoever sends it to all processes, and from torchrun, which hands on its own.
ECHO_S = 1.0


class StopSignals:
    """Context in which SIGINT and SIGTERM are remembered; outside of the main thread it changes nothing."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.received = 0
        """The number of the signal that has come; 0: none."""
        self._at = 0.0
        self._ranks = ranks
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Between micro-batches, whose number the ranks may differ in: raise Stopped if a signal has come here."""
        if self.received or self._ranks.lockstep:
            self._ranks.meet(self.received)

    def check_together(self) -> None:
        """Raise Stopped if a signal has come to any rank; all of them call this equally often."""
        self._ranks.meet(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and (self._ranks.world == 1 or now - self._at > ECHO_S):
            os._exit(128 + number)  # The second signal: now means now.
        self.received, self._at = number, now

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._receive) for number in signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
