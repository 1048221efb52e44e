"""The process of one sink: `python -m linnet.track.sinks NAME RUN` brings it up to date with the run.

What   Reads the rows of the run folder and posts those that the sink lacks. With --follow it goes on until its stdin
       ends, which is when the training ends or dies.
Why    See the package: other people's code gets a process to itself.
How    Its own stdout is a pipe of sentences for the user; whatever the sink prints goes to RUN/NAME/output.log.
       After the end it has --wait seconds; then the kernel's alarm ends it, even if the sink never returns.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from linnet.config import SINKS
from linnet.errors import LinnetError, RunLockedError
from linnet.files import Lock
from linnet.track.sinks import COMPLETE, SAID_WHY, lacks
from linnet.track.sinks.steps import Follow, Step, read_facts

POLL_S = 0.5
LOCK_S = 15.0  # An earlier process of the same sink, whose training was killed, is gone by then.
NICENESS = 10  # The training's threads come first.


class Sink(Protocol):
    """Where steps go. Whatever it raises, or does worse, ends this process alone."""

    first: int
    """The first step that it lacks."""

    def post(self, step: Step) -> None: ...
    def finish(self) -> None: ...


def main() -> None:
    """Parse the command line, run, and exit with 0, or with SAID_WHY after a sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m linnet.track.sinks", description="Bring a sink up to date with a run."
    )
    parser.add_argument("name", choices=SINKS)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--follow", action="store_true", help="go on until stdin ends")
    parser.add_argument("--step", type=int, default=sys.maxsize, help="where the training goes on")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that are left then")
    given = parser.parse_args()
    if not (given.run / "metrics.jsonl").is_file():
        parser.error(
            f"{given.run} is no run: it has no metrics.jsonl; name a run folder, such as runs/lines."
        )
    for number in (signal.SIGINT, signal.SIGTERM) if given.follow else ():
        signal.signal(number, signal.SIG_IGN)  # They mean the training, which then ends our stdin.
    ended = threading.Event()
    if given.follow:
        threading.Thread(target=wait_for_end, args=(ended, given.wait), daemon=True).start()
        if hasattr(os, "nice"):
            os.nice(NICENESS)
    else:
        ended.set()
    say = sentences()
    folder = given.run / given.name
    try:
        with output_to(folder), alone(folder):
            feed(given.name, given.run, step=given.step, ended=ended, say=say)
    except (Exception, SystemExit) as error:  # a sink may call sys.exit
        say(lacks(reason(error, name=given.name), name=given.name, root=given.run))
        os._exit(SAID_WHY)  # Not the sink's exit handlers: they may hang.
    if given.follow:
        say(COMPLETE)


def feed(name: str, root: Path, *, step: int, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Post what the sink lacks, until the training has ended."""
    sink = open_sink(name, root, step=step, say=say)
    follow = Follow(root)
    while True:
        last_time = ended.is_set()  # asked first, so that all rows are there when this is the last time
        for whole in follow.take(ended=last_time):
            if whole.number >= sink.first:
                sink.post(whole)
        if last_time:
            break
        ended.wait(POLL_S)
    sink.finish()


def open_sink(name: str, root: Path, *, step: int, say: Callable[[str], None]) -> Sink:
    """Import the package of a sink, and open it."""
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(name=name)
    facts = read_facts(root)
    if name == "tensorboard":
        from linnet.track.sinks.tensorboard import TensorBoard

        return TensorBoard(root / name, facts=facts, step=step)
    from linnet.track.sinks.wandb import Wandb

    return Wandb(name, root, folder=root / name, facts=facts, say=say)


def wait_for_end(ended: threading.Event, wait_s: float) -> None:
    """Set `ended` when stdin ends. What then lasts longer than `wait_s` has nobody who waits for it."""
    sys.stdin.buffer.read()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, wait_s + 1)  # SIGALRM's default ends the process
    ended.set()


def sentences() -> Callable[[str], None]:
    """What writes a sentence to our stdout, as it is now."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")

    def say(text: str) -> None:
        with contextlib.suppress(OSError):  # the training is gone
            print(" ".join(text.split()), file=stream, flush=True)

    return say


@contextlib.contextmanager
def output_to(folder: Path) -> Iterator[None]:
    """Make the folder; whatever is printed from here on goes to its output.log."""
    folder.mkdir(exist_ok=True)
    log = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    yield


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to this sink of this run."""
    deadline = time.monotonic() + LOCK_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(Lock(folder / "lock"))
                break
            except RunLockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield


def reason(error: BaseException, *, name: str) -> str:
    """Why a sink failed, as the beginning of a sentence."""
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return f"the package is not installed (`pip install 'linnet[track]'` or `pip install {name}`)"
    if isinstance(error, SystemExit):
        return f"it ended its process (exit code {error.code})"
    if isinstance(error, LinnetError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'} cannot be written ({error.strerror})"
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"


if __name__ == "__main__":
    main()
