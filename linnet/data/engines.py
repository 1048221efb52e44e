"""Who runs the map of preparing: this process, some processes of this machine, or a Ray cluster.

Why    A corpus that outgrows one core, or one machine, needs a scheduler. Python and Ray have one each; none is ours.
How    `run(function, items, ...)` yields results in the order of the items, as `map` does; it stops asking for more
       when nobody takes the next one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from linnet.errors import LinnetError, OutOfMemoryError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items for each worker that are under way or wait


def run(
    function: Callable[[Item], Result], items: Sequence[Item], *, engine: str, workers: int
) -> Iterator[Result]:
    """`function(item)` for each item, in order; `engine` is "local" or "ray".

    An error of a worker is raised here.
    """
    if engine == "ray":
        yield from _run_ray(function, items)
    elif workers == 1 or len(items) == 1:
        yield from map(function, items)
    else:
        yield from _run_processes(function, items, workers=min(workers, len(items)))


def _run_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Result]:
    # Not forked: a tokenizer's threads, or torch's, may be in the middle of anything.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        waiting: deque[Any] = deque()
        try:
            for item in items:
                with _plain_main():  # each call may start a worker
                    waiting.append(pool.submit(function, item))
                if len(waiting) == AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError(
                "A process that prepares the data was killed, most likely since the memory does not suffice; set "
                "data.workers=1, or fewer than now."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _plain_main() -> Iterator[None]:
    """Processes that start now do not run the caller's script again, as they would to find its functions."""
    caller = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = caller


def _begin_worker() -> None:
    """Each worker has a core; the tokenizer's own threads would only get in each other's way.

    Ctrl-C reaches workers as well and ends them without a word, and so does the end of the caller, however it ends.
    """
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def _run_ray(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Each item is a Ray task. RAY_ADDRESS names a cluster; without it Ray starts on this machine."""
    try:
        import ray
    except ImportError as error:
        raise LinnetError(
            'data.engine=ray needs Ray: pip install "linnet[cluster]", or leave data.engine out.'
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        task = ray.remote(function)
        cores = ray.cluster_resources().get("CPU", 1)
        at_once = AHEAD * max(1, int(cores))
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(task.remote(item))
            if len(waiting) == at_once:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    finally:
        if started:
            ray.shutdown()
