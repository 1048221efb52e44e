"""Candidates that take turns: each is a process of its own that sleeps while another one computes.

What   `Candidate` is the benchmark's side: start, turn, stop. `Turns` is the side of the process that trains: it is
       told of every step and sleeps where a turn ends.
Why    Two speeds can be compared only if they were measured under the same conditions. Machines have other work and
       get warm, so the candidates take turns within minutes, round after round, and ratios are taken within a round.
How    A line of JSON each way over pipes: {"warm": 1, "steps": 3} starts a turn, the answer has its seconds and steps.
       A sleeping process reads from its pipe and takes no processor time. What a process prints goes to its log.
       This file imports nothing of Linnet: what that sets for its own threads must not reach the peers.
"""

import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

LAST_LINES = 15  # of the log of a process that failed


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- the side of the benchmark ---------------------------------------------------------------------------------------


class CandidateError(Exception):
    """A candidate cannot run here; the text says why."""


class Candidate:
    """A training in a process of its own."""

    def __init__(
        self, name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.command, self.environment = name, command, environment
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def turn(self, *, warm: int, steps: int) -> dict[str, Any]:
        """Let it make `warm` steps that are not timed and `steps` that are; starts the process if it does not run."""
        if self._process is None:
            with (self.folder / f"{self.name}.log").open("ab") as log:
                self._process = subprocess.Popen(
                    self.command,
                    cwd=self.folder,
                    env=dict(self.environment),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # It has ended: then there is no answer either.
            self._process.stdin.write(json.dumps({"warm": warm, "steps": steps}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise CandidateError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        lines = (self.folder / f"{self.name}.log").read_text(errors="replace").strip().splitlines()
        say("\n".join(lines[-LAST_LINES:]))
        self.stop()
        return lines[-1] if lines else f"its process ended with {code}"

    def stop(self) -> None:
        """End the process; the next turn starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def figure(name: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    """min, median and max of a measure, with four digits that count."""
    low, middle, high = min(values), statistics.median(values), max(values)
    numbers = {"min": low, "median": middle, "max": high}
    return {"name": name, "unit": unit, **{key: float(f"{value:.4g}") for key, value in numbers.items()}}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first to the left, the others to the right."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    shown = (
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in shown)


def spread(values: Sequence[float], form: str) -> list[str]:
    """min, median and max as cells of a table."""
    return [format(value, form) for value in (min(values), statistics.median(values), max(values))]


def describe_versions(nanogpt: Path | None = None) -> str:
    """The machine, and the versions of who runs on it."""
    from linnet.device import describe_machine

    machine = describe_machine()
    versions = [f"{key} {machine[key]}" for key in ("linnet", "torch", "python")]
    for name in ("transformers", "trl"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    if nanogpt is not None:
        command = ["git", "-C", str(nanogpt), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        versions.append(f"nanoGPT {commit or 'of unknown commit'}")
    card = "" if machine["cuda"] == "none" else f"{machine['cuda']}; "
    cores = f"{machine['threads']} threads of {os.cpu_count()} cores"
    return f"{card}{machine['cpu']}, {cores}; {', '.join(versions)}"


# -- the side of the process that trains -----------------------------------------------------------------------------


class Turns:
    """What a training calls after each of its steps. Made first of all: what is printed later goes to the log."""

    def __init__(self) -> None:
        self._requests, self._answers = sys.stdin, own_stdout()
        self._steps: list[dict[str, Any]] = []
        self._warm = self._last = 0
        self._started = 0.0

    def wait(self) -> bool:
        """Sleep until the next turn begins; False if there is none."""
        line = self._requests.readline()
        if not line:
            return False
        request = json.loads(line)
        self._warm, self._last = request["warm"], request["warm"] + request["steps"]
        self._steps = []
        self._begin_if_warm()
        return True

    def step(self, **facts: Any) -> bool:
        """A step is done; where it ends the turn, tell its figures and sleep. False: this was the last turn.

        Tensors among the facts (a loss on a card) are read when the turn has ended.
        """
        self._steps.append(facts)
        if len(self._steps) < self._last:
            self._begin_if_warm()
            return True
        synchronize()
        seconds = time.perf_counter() - self._started
        answer = {
            "seconds": seconds,
            "memory_gb": peak_memory_gb(),
            "warm": self._warm,
            "steps": [{key: float(value) for key, value in step.items()} for step in self._steps],
        }
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        return self.wait()

    def _begin_if_warm(self) -> None:
        if len(self._steps) == self._warm:
            synchronize()
            self._started = time.perf_counter()


def own_stdout() -> TextIO:
    """Standard output for the answers alone; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def synchronize() -> None:
    """Wait until a card has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_gb() -> float:
    """In 1e9 bytes: of the allocator on a card, else of the process. torch is loaded, so its threads are set."""
    import torch

    from linnet.device import memory_gb

    return memory_gb("cuda" if torch.cuda.is_available() else "cpu")
