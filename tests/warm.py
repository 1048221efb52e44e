"""`linnet` commands in processes that start in milliseconds, and die at a chosen place.

Why: a test that kills a training 200 times cannot pay 3 s of imports for each. One process imports everything
once and forks for each command; what runs in the fork is `linnet.__main__.main` and nothing else, in its own
process, with its own exit code. (Forking pytest itself does not work: torch refuses a backward pass in
the fork of a process that has done one.)

How: `with Warm() as warm: child = warm.start("train", "scratch", ..., folder=tmp_path); child.wait()`.
`faults` says where the child gets a signal: `{"point": "forward", "count": 7, "signals": [15]}` at the 7th
forward pass; the points are in `install`. `{"does": "nan"}` makes the loss there not finite, `{"does": "memory"}`
raises what torch raises when memory runs out. One is finer: `{"point": "operation", "save": 2, "count": 9}` is the
9th change of the disk inside the second `save_checkpoint`; a write is torn there, its first half is done.
`{"file_size": 1000}` lets no file grow beyond 1,000 bytes; `{"more_memory": 1000}` lets the process take 1,000 bytes
of memory more than it has; `{"environ": {...}}` is for processes that it starts, and for `start_ranks`: several
children as torchrun would start them, but with nobody who watches over them. `{"bucket_bytes": 1000}` lets these add up
their gradients in smaller parts.
"""

import importlib
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent


@dataclass
class Child:
    """A command that runs, or has run."""

    warm: "Warm"
    pid: int
    out: Path

    def wait(self) -> int:
        """Its exit code; minus the signal's number if one ended it."""
        return int(self.warm.ask({"wait": self.pid}))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal. The process is not reaped before `wait`, so the pid is still its own."""
        os.kill(self.pid, number)

    @property
    def output(self) -> str:
        """What it printed, stdout and stderr together."""
        return self.out.read_text()


class Warm:
    """The process that forks. A context manager. `imports`: modules that it imports for its forks, beside the usual."""

    def __init__(self, *imports: str) -> None:
        self._imports = imports

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", *self._imports],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._count = 0
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, question: dict[str, Any]) -> Any:
        """Send one line of JSON, read one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(self, *argv: str, folder: Path, faults: dict[str, Any] | None = None) -> Child:
        """Start `linnet ARGV` in `folder`."""
        self._count += 1
        out = folder / f"output-{self._count}.txt"
        question = {"argv": argv, "folder": str(folder), "out": str(out), "faults": faults or {}}
        return Child(self, self.ask(question), out)

    def start_ranks(
        self, world: int, *argv: str, folder: Path, faults: dict[int, dict[str, Any]] | None = None
    ) -> list[Child]:
        """Start `linnet ARGV` in `world` processes that find each other; `faults` by rank."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environ = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children = []
        for rank in range(world):
            own = environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
            fault = (faults or {}).get(rank, {}) | {"environ": own}
            children.append(self.start(*argv, folder=folder, faults=fault))
        return children

    def run(self, *argv: str, folder: Path, faults: dict[str, Any] | None = None) -> tuple[int, str]:
        """Start, wait; returns exit code and output."""
        child = self.start(*argv, folder=folder, faults=faults)
        return child.wait(), child.output


# --- from here on: inside the process that forks, and in its forks ---


def serve() -> None:
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import torch

    import linnet.api  # noqa: F401  (imported here once, for all forks)

    for name in sys.argv[1:]:
        importlib.import_module(name)
    torch.set_num_threads(1)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:
            answer = os.fork() or child(question)
        print(json.dumps(answer), flush=True)


def child(question: dict[str, Any]) -> int:
    """Never returns: runs the command and exits as `linnet` would."""
    code: Any = 99
    try:
        os.chdir(question["folder"])
        out = os.open(question["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        empty = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((empty, 0), (out, 1), (out, 2)):
            os.dup2(descriptor, number)
        sys.argv = ["linnet", *question["argv"]]
        # Tests that a shell started in the background inherit that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        install(**question["faults"])
        from linnet.__main__ import main

        main()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def install(
    *,
    point: str = "",
    count: int | list[int] = 0,
    save: int = 1,
    signals: tuple[int, ...] = (signal.SIGKILL,),
    file_size: int = 0,
    more_memory: int = 0,
    environ: dict[str, str] | None = None,
    does: str = "signal",
    bucket_bytes: int = 0,
) -> None:
    """Make this process send `signals` to itself at the `count`-th passing of `point`; `does` has other things."""
    os.environ.update(environ or {})
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if more_memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    import torch

    from linnet import api, following, session, setup
    from linnet.generate.engine import Model
    from linnet.generate.writing import Writing
    from linnet.training import optim, several

    several.BUCKET_BYTES = bucket_bytes or several.BUCKET_BYTES
    passed = 0

    def strike() -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    def around(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal passed
            passed += 1
            struck = passed in ([count] if isinstance(count, int) else count)
            if struck and does == "memory":
                raise torch.OutOfMemoryError("out of memory, says the test")
            if struck and does == "nan":
                return work(*arguments, **named) * math.nan
            if struck:
                strike()
            return work(*arguments, **named)

        return call

    places: dict[str, tuple[Any, str]] = {
        "forward": (following if int(os.environ.get("RANK", "0")) else api, "next_token_loss"),
        "sum": (torch.distributed, "all_reduce"),
        "shares": (several, "whole"),
        "evaluate": (session, "next_token_loss"),
        "sample": (Model, "generate"),
        "answer": (Writing, "complete"),
        "save": (session, "save_checkpoint"),
        "model": (session, "save_model"),
    }
    if point == "operation":
        assert isinstance(count, int)
        strike_in_save(strike, save=save, count=count)
    elif point == "step":
        make = setup.make_optimizer

        def wrapped(*arguments: Any, **named: Any) -> optim.Optimizer:
            optimizer = make(*arguments, **named)
            optimizer.step = around(optimizer.step)  # type: ignore[method-assign]
            return optimizer

        setup.make_optimizer = wrapped
    elif point:
        module, name = places[point]
        setattr(module, name, around(getattr(module, name)))


def strike_in_save(strike: Callable[[], None], *, save: int, count: int) -> None:
    """Strike at the count-th operation of the save-th `save_checkpoint`, in the middle of it if it is a write."""
    from linnet import session
    from linnet.files import operations

    saves = number = 0
    inside = False
    save_checkpoint = session.save_checkpoint

    def counted(*arguments: Any, **named: Any) -> Path:
        nonlocal saves, inside
        saves, inside = saves + 1, True
        try:
            return save_checkpoint(*arguments, **named)
        finally:
            inside = False

    def around(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal number
            number += inside and saves == save
            if inside and saves == save and number == count:
                if name == "write":
                    descriptor, data = arguments
                    operation(descriptor, data[: len(data) // 2])
                    arguments = (descriptor, data[len(data) // 2 :])
                    strike()
                    return len(data) // 2 + operation(*arguments)
                strike()
            return operation(*arguments)

        return call

    session.save_checkpoint = counted
    for name in operations.NAMES:
        setattr(operations, name, around(name, getattr(operations, name)))


if __name__ == "__main__":
    serve()
