"""The process that copies: how it is started, what it is told, what it answers.

What   `Copier` is the training's end of it, `serve` the other. A job is a line of JSON, an answer too.
Why    Where the mirror hangs, only this process does. `os.write` to a dead mount may not even end by a kill.
How    A thread of the training puts the answers into a queue, so the training never waits unless it wants to. The
       process ends when its standard input does, so also with a training that was killed. It has a session of its
       own, so that Ctrl-C reaches the training alone, and gives way to it (nice 10).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linnet.errors import DiskError, LinnetError
from linnet.mirror.copying import MirrorError, copy_report, copy_run
from linnet.mirror.fetching import fetch

Message = dict[str, Any]
ENDED: Message = {"failed": "the process that copies has ended", "ended": True}


class Copier:
    """A running process that takes one job at a time."""

    def __init__(self) -> None:
        # The same modules as here, wherever they were found. Its stderr is not ours: who reads ours would wait for it.
        program = f"import sys; sys.path[:] = {sys.path!r}; from linnet.mirror.process import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self.answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, job: Mapping[str, Any]) -> None:
        """Hand over a job; a line is far smaller than a pipe, so this does not wait."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # It has ended, and `answers` says so.
            self._process.stdin.write(json.dumps(job).encode() + b"\n")

    def end(self) -> None:
        """Kill it; not even that ends a process in a write that hangs, so nobody waits for it long."""
        self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while piece := os.read(self._process.stdout.fileno(), 65536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self.answers.put(json.loads(line))
        self._process.stdout.close()
        self.answers.put(ENDED)


def serve() -> None:
    """The other end: do the jobs until nobody is there any more."""
    if hasattr(os, "nice"):
        os.nice(10)
    jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(jobs,), daemon=True).start()
    while True:
        _answer(_work(jobs.get()))


def _hear(jobs: queue.SimpleQueue[Message]) -> None:
    for line in sys.stdin.buffer:
        jobs.put(json.loads(line))
    os._exit(0)  # In whatever the copy is: the names at the mirror are right at every moment.


def _answer(message: Message) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def _work(job: Message) -> Message:
    """Do a job; the answer has one of the keys `done`, `refused` (for good), `failed` (this time)."""

    def tell(size: int) -> None:
        _answer({"bytes": size})

    def say(text: str) -> None:
        _answer({"say": text})

    root, place, name = Path(job["root"]), Path(job["place"]), job["name"]
    try:
        if job["do"] == "fetch":
            return {"done": fetch(root, place=place, name=name, recipe=job["recipe"], tell=tell, say=say)}
        held, step = Path(job["held"]), job["step"]
        device = copy_run(held, root=root, place=place, name=name, step=step, device=job["device"], tell=tell)
        try:
            copy_report(held, place / name)
        except (OSError, DiskError) as error:
            return {"done": step, "device": device, "no_report": _reason(error)}
        return {"done": step, "device": device}
    except MirrorError as error:
        return {"failed": str(error)}
    except DiskError as error:
        return {"failed": _reason(error)}
    except LinnetError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": _reason(error)}


def _reason(error: BaseException | None) -> str:
    """`No space left on device: /drive/...`"""
    if isinstance(error, DiskError):  # Its own advice, to start again, is not for a mirror.
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}"
