"""`linnet serve`: open the port, say where, serve until told to stop, and leave nobody without an answer.

How: the port is bound before anything else, so that one that is taken is one sentence. SIGTERM and Ctrl-C drain:
nobody is let in any more, answers are finished, those that take too long end where they are; a second signal is
immediate.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from linnet.device import choose_writing_precision
from linnet.errors import LinnetError
from linnet.generate.engine import Model
from linnet.serve.app import Service, build
from linnet.serve.limits import timed_connection
from linnet.serve.settings import Settings
from linnet.serve.shelf import Shelf

SIGNALS = (signal.SIGINT, signal.SIGTERM)
OpenModel = Callable[[Path, str], Model]
"""Folder and precision -> the model, ready to write several texts at once."""


def serve(models: Sequence[str], settings: Settings, *, load: OpenModel) -> None:
    """Serve until a signal comes. `load` opens a model.

    Raises:
        UsageError: settings that do not fit together.
        LinnetError: a model is none, or the port cannot be opened.
    """
    choice = choose_writing_precision(settings.precision)
    shelf = Shelf(models, load=lambda folder: load(folder, choice.value), precision=choice.value)
    listening = open_port(settings.host, settings.port)
    allow_many_files()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    first_line = f"http://{shown}:{port} serves {', '.join(shelf.places)} in {choice.value}: {choice.reason}."
    Server(Service(settings, shelf), first_line=first_line).run(sockets=[listening])
    say("All answers are given; the server has stopped.")


class Server(uvicorn.Server):
    """uvicorn, with our signals and our way to stop."""

    def __init__(self, service: Service, *, first_line: str) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                build(service),
                http=timed_connection(settings.seconds_to_arrive),
                ws="none",
                lifespan="on",
                loop="asyncio",
                access_log=False,
                log_level="error",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(settings.seconds_to_drain) + 5,
            )
        )
        self.service = service
        self.first_line = first_line
        service.meters.watch(connections=lambda: len(self.server_state.connections))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's would end the process by the signal, though everything went well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first drains, the second ends at once."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """It is said once it is so: a signal that comes after the line drains."""
        await super().startup(sockets)
        say(self.first_line)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Nobody comes in; who is in has some seconds, and then gets what there is."""
        scheduler = self.service.scheduler
        scheduler.drain()
        asyncio.get_running_loop().call_later(self.service.settings.seconds_to_drain, scheduler.cut_all)
        await super().shutdown(sockets)


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise LinnetError(f"--host {host} is no address of this machine ({error.strerror}).") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise LinnetError(
                f"Port {port} is taken by another program; choose another with --port."
            ) from error
        raise LinnetError(f"{host}:{port} cannot be opened: {error.strerror}; choose another.") from error
    return listening


def allow_many_files() -> None:
    """Each connection is an open file, and many systems allow 1,024 unless asked."""
    try:
        import resource
    except ImportError:  # Windows has no resource module.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))


def say(line: str) -> None:
    """On stderr, at once."""
    print(line, file=sys.stderr, flush=True)
