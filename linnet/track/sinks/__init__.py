"""TensorBoard, Weights & Biases, trackio: places beside metrics.jsonl that receive the rows of a run.

What   `Sinks(root, names=..., step=..., say=...)` starts one process for each sink, `look()` says what they said,
       `close()` waits for them a little.
Why    A sink is other people's code: it imports for seconds, asks for an account, waits for a network, ends its
       process. None of that may stop, slow or block a training, nor another sink.
How    Each process (`__main__`) reads the rows from the run folder by itself, so the training hands it nothing and
       never waits. Its stdin tells it that the training ended, however it ended; its stdout says sentences for the
       user. What a sink lacks in the end, `python -m linnet.track.sinks NAME RUN` brings later.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

import linnet

SAID_WHY = 65  # Exit code of a sink's process that failed and has said why.
COMPLETE = "complete"  # Its last line if it did not; an exit code of 0 could be the sink's own doing.


class Sinks:
    """Sends the rows of the run `root` to other programs, each from a process of its own.

    Args:
        root: the run folder.
        names: of the sinks, such as `tensorboard`; one named twice counts once.
        step: the step of the checkpoint from which the training goes on, 0 at the start.
        say: takes a sentence for the user, in `look` and `close`.
        wait_s: most seconds that `close` takes.
    """

    def __init__(
        self, root: Path, *, names: Sequence[str], step: int, say: Callable[[str], None], wait_s: float = 10.0
    ) -> None:
        self._say = say
        self._wait_s = wait_s
        self._heard: SimpleQueue[str] = SimpleQueue()
        self._sinks = []
        for name in dict.fromkeys(names):
            try:
                self._sinks.append(_Sink(name, root, step=step, say=self._heard.put, wait_s=wait_s))
            except OSError as error:  # no more processes, no memory
                self._heard.put(f"{name}: {lacks(error.strerror or str(error), name=name, root=root)}")

    def look(self) -> None:
        """Say what the sinks have said since the last time; costs next to nothing."""
        while not self._heard.empty():
            self._say(self._heard.get())

    def close(self) -> None:
        """Wait for what is on its way, at most `wait_s` seconds; then end what still runs and say what to type.

        A second call does nothing.
        """
        for sink in self._sinks:
            sink.end()
        deadline = time.monotonic() + self._wait_s
        waiting = [sink for sink in self._sinks if not sink.is_done(by=time.monotonic() + 0.5)]
        if waiting and self._wait_s > 0.5:
            names = " and ".join(sink.name for sink in waiting)
            self._say(f"Waiting for {names}, at most {self._wait_s:g} s.")
        for sink in waiting:
            if not sink.is_done(by=deadline):
                sink.kill()
        self._sinks = []
        self.look()


class _Sink:
    """One sink's process, and the thread that listens to it."""

    def __init__(
        self, name: str, root: Path, *, step: int, say: Callable[[str], None], wait_s: float
    ) -> None:
        self.name = name
        self._root = root
        self._say = say
        self._wait_s = wait_s
        self._killed = False
        # -P: a folder ./wandb, which wandb itself makes where it runs, must not be taken for the package.
        command = [sys.executable, "-P", "-m", "linnet.track.sinks", name, str(root)]
        command += ["--follow", "--step", str(step), "--wait", str(wait_s)]
        paths = [os.environ.get("PYTHONPATH", ""), str(Path(linnet.__file__).parent.parent)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C is for the training, and no terminal means no questions.
        )
        self._listener = threading.Thread(target=self._listen, name=f"linnet-{name}", daemon=True)
        self._listener.start()

    def end(self) -> None:
        """Tell it that there will be no more rows."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def is_done(self, *, by: float) -> bool:
        """Whether it has ended, `by` a moment of time.monotonic() for which this waits."""
        self._listener.join(max(0.0, by - time.monotonic()))
        return not self._listener.is_alive()

    def kill(self) -> None:
        """End it and what it started."""
        self._killed = True
        self._kill_group()
        self._listener.join(1.0)
        self._say(
            f"{self.name}: {lacks(f'not done in {self._wait_s:g} s, so it was ended', name=self.name, root=self._root)}"
        )

    def _listen(self) -> None:
        assert self._process.stdout is not None
        is_complete = False
        with self._process.stdout:
            for line in self._process.stdout:
                is_complete |= line == COMPLETE + "\n"
                if not is_complete:
                    self._say(f"{self.name}: {line.rstrip()}")
        code = self._process.wait()
        if code != 0:
            self._kill_group()  # wandb's own process outlives ours.
        if not is_complete and code != SAID_WHY and not self._killed:
            why = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._say(f"{self.name}: {lacks(f'its process ended ({why})', name=self.name, root=self._root)}")

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):  # nobody is left
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)


def lacks(why: str, *, name: str, root: Path) -> str:
    """The sentence about a sink that did not get everything: why, that nothing is lost, what to type."""
    command = shlex.join(["python", "-m", "linnet.track.sinks", name, str(root)])
    return f"{why}; metrics.jsonl has all rows, and after the training `{command}` brings them."
