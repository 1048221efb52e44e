"""Python imports this at its start where the folder is in PYTHONPATH: no other host than this machine is reached.

A try is an error, and is noted in the file LINNET_TEST_STRAY, since the clients swallow some errors.
"""

import os
import socket
from pathlib import Path
from typing import Any

_HERE = ("127.0.0.1", "::1", "localhost", "", None)


def _check(host: Any) -> None:
    if host not in _HERE and not str(host).startswith("127."):
        with Path(os.environ["LINNET_TEST_STRAY"]).open("a") as file:
            file.write(f"{host}\n")
        raise OSError(f"a test must not reach {host}")


class _Guarded(socket.socket):
    def connect(self, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return super().connect_ex(address)


_getaddrinfo = socket.getaddrinfo


def _guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
    _check(host.decode() if isinstance(host, bytes) else host)
    return _getaddrinfo(host, *args, **kwargs)


if "LINNET_TEST_STRAY" in os.environ:
    socket.socket = _Guarded  # type: ignore[misc]
    socket.getaddrinfo = _guarded
