"""Make the disk fail at the k-th operation.

Why: a test that crashes a save at one place proves little. All changes of the disk go through
`linnet.files.operations`, so here they are counted, and each one in turn is made the last one of the process
(`crash_at`, `exit_at`), made to fail (`error_at`), or made to write less than it was given (`short_writes`).

How: `count(work)` says how many operations there are; then `for k in range(1, count + 1): with crash_at(k): ...`.
Later tests use the same helpers for their own saves, exports and stores.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from linnet.files import operations

KILLED = 137  # What a shell reports for a process that `kill -9` ended.

Operation = Callable[..., Any]


class Crash(BaseException):
    """The process dies here: no `except Exception` sees it, and no later operation works."""


@contextmanager
def wrapped(around: Callable[[int, str, Operation, tuple[Any, ...]], Any]) -> Iterator[list[str]]:
    """Replace each operation by `around(number from 1, name, operation, arguments)`; yields the names so far."""
    names: list[str] = []
    originals = {name: getattr(operations, name) for name in operations.NAMES}

    def wrapper(name: str) -> Operation:
        def call(*arguments: Any) -> Any:
            names.append(name)
            return around(len(names), name, originals[name], arguments)

        return call

    for name in originals:
        setattr(operations, name, wrapper(name))
    try:
        yield names
    finally:
        for name, operation in originals.items():
            setattr(operations, name, operation)


def count(work: Callable[[], Any]) -> int:
    """Run `work` undisturbed; returns how many operations it did."""
    with wrapped(lambda _k, _name, operation, arguments: operation(*arguments)) as names:
        work()
    return len(names)


@contextmanager
def crash_at(k: int) -> Iterator[None]:
    """`Crash` instead of operation k and of all later ones. A write is torn: its first half is on the disk."""

    def around(number: int, name: str, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        if number < k:
            return operation(*arguments)
        if number == k and name == "write":
            descriptor, data = arguments
            operation(descriptor, data[: len(data) // 2])
        raise Crash(f"before operation {k}, {name}")

    try:
        with wrapped(around):
            yield
    except Crash:
        pass


def exit_at(k: int, work: Callable[[], Any]) -> int:
    """Run `work` in a forked child that really ends (no `finally`, no flush) before operation k."""

    def around(number: int, _name: str, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        if number == k:
            os._exit(KILLED)
        return operation(*arguments)

    def child() -> None:
        with wrapped(around):
            work()

    return in_child(child)


@contextmanager
def error_at(
    k: int, number: int, *, only: tuple[str, ...] = operations.NAMES, on: bool = False
) -> Iterator[None]:
    """OSError `number` (an errno) instead of the k-th operation named in `only`; with `on`, of all later ones, too."""
    hits = 0

    def around(_number: int, name: str, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        nonlocal hits
        hits += name in only
        if name in only and (hits == k or (on and hits > k)):
            raise OSError(number, os.strerror(number))
        return operation(*arguments)

    with wrapped(around):
        yield


@contextmanager
def short_writes(size: Callable[[int], int]) -> Iterator[None]:
    """Each write takes only `size(length)` of its bytes, at least one."""

    def around(_number: int, name: str, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        if name != "write":
            return operation(*arguments)
        descriptor, data = arguments
        return operation(descriptor, data[: max(1, min(len(data), size(len(data))))])

    with wrapped(around):
        yield


def fork(work: Callable[[], Any]) -> int:
    """Run `work` in a forked child and return its pid. It exits 0, or 99 after an exception; wait with `wait`."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 and later warn of forks beside threads.
        pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        work()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of a child; minus the signal's number if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked child and return its exit code."""
    return wait(fork(work))
