"""Python imports this at its start where the folder is in PYTHONPATH: the process that copies to a mirror is disturbed.

What LINNET_TEST_MIRROR holds, in JSON: `{"delay": 0.1}` seconds before each change of the disk; `{"file_size": 1000}`
lets no file grow beyond 1,000 bytes; `{"count": 7, "strike": "copier"}` is kill -9 at the 7th change of the disk (of
the "training", or of "both"), in the middle of it if it is a write; `"strike": "stop"` stops it there with SIGSTOP.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def _strike(what: str) -> None:
    if what in ("training", "both"):
        os.kill(os.getppid(), signal.SIGKILL)
    if what in ("copier", "both"):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)


def _install(*, delay: float = 0, file_size: int = 0, count: int = 0, strike: str = "copier") -> None:
    from linnet.files import operations

    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    passed = 0

    def around(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal passed
            passed += 1
            time.sleep(delay)
            if passed == count and name == "write":
                descriptor, data = arguments
                done = operation(descriptor, data[: len(data) // 2])
                _strike(strike)
                return done + operation(descriptor, data[done:])
            if passed == count:
                _strike(strike)
            return operation(*arguments)

        return call

    for name in operations.NAMES:
        setattr(operations, name, around(name, getattr(operations, name)))


if "LINNET_TEST_MIRROR" in os.environ and any("linnet.mirror.process" in word for word in sys.orig_argv):
    _install(**json.loads(os.environ["LINNET_TEST_MIRROR"]))
