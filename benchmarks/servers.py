"""The servers of serve.py: how each is started, what it is asked, what it holds in memory.

What   `WAYS` are the candidates; `missing` says which cannot run here and why; `Server` is one that runs, sleeps and
       stops.
Why    Only one may compute at a time, and each must be asked for the same: greedy text, as many tokens, whatever the
       model thinks of its end.
How    A server is a process of its own, with as many threads as the machine has cores. Between its turns its processes
       are stopped by a signal, so that none can compute, and go on by another; where memory is short it ends instead.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from turns import LAST_LINES, CandidateError, say

SLOTS = 32  # of llama-server
SECONDS_TO_START = 300
HOST = "127.0.0.1"
THREADS = os.cpu_count() or 1
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy this machine uses


class Way(NamedTuple):
    """A candidate: who, in which precision."""

    who: str
    precision: str


WAYS = {
    "linnet": Way("linnet", "auto"),
    "linnet-fp32": Way("linnet", "fp32"),
    "linnet-bf16": Way("linnet", "bf16"),
    "linnet-fp16": Way("linnet", "fp16"),
    "linnet-int8": Way("linnet", "int8"),
    "transformers-fp32": Way("transformers", "fp32"),
    "transformers-bf16": Way("transformers", "bf16"),
    "transformers-batching-fp32": Way("transformers-batching", "fp32"),
    "transformers-batching-bf16": Way("transformers-batching", "bf16"),
    "llama.cpp-f16": Way("llama.cpp", "f16"),
    "llama.cpp-q8_0": Way("llama.cpp", "q8_0"),
}
TRANSFORMERS = ("transformers", "fastapi", "uvicorn", "openai")
PACKAGES = {
    "transformers": TRANSFORMERS,
    "transformers-batching": TRANSFORMERS,
    "llama.cpp": ("gguf", "llama_cpp", "starlette_context", "sse_starlette", "pydantic_settings"),
}


@dataclass(frozen=True)
class Job:
    """What all candidates share."""

    folder: Path
    """The model in Hugging Face's form."""
    work: Path
    """Has f16.gguf and q8_0.gguf, and the logs."""
    end_of_text: int
    window: int
    new_tokens: int
    llama_server: Path | None
    """The program of llama.cpp; None: the server of llama-cpp-python."""


# -- which, and how --------------------------------------------------------------------------------------------------


def find_llama_server(given: Path | None) -> Path | None:
    """The program that was named, else one that the shell would find."""
    found = shutil.which(given or "llama-server")
    if given is not None and found is None:
        sys.exit(f"--llama-server {given}: there is no such program.")
    return Path(found).resolve() if found else None


def missing(llama_server: Path | None) -> dict[str, str]:
    """Candidates that cannot be measured here, and why."""
    from linnet.device import cpu_has_bf16

    reasons = {}
    for name, way in WAYS.items():
        packages: tuple[str, ...] = PACKAGES.get(way.who, ())
        if way.who == "llama.cpp" and llama_server is not None:
            packages = ("gguf",)
        for package in packages:
            if importlib.util.find_spec(package) is None:
                reasons[name] = f"{package} is not installed"
        if way.precision == "bf16" and not cpu_has_bf16():
            reasons[name] = "this CPU has no bf16 products"
    return reasons


def default_names() -> list[str]:
    """Ours as it is started by its users, and the peers in what is quickest here."""
    from linnet.device import cpu_has_bf16

    precision = "bf16" if cpu_has_bf16() else "fp32"
    peers = [f"transformers-{precision}", f"transformers-batching-{precision}"]
    return ["linnet", *peers, "llama.cpp-f16", "llama.cpp-q8_0"]


def describe(name: str, job: Job) -> str:
    """Which program it was, with how many texts at once."""
    way = WAYS[name]
    if way.who == "linnet":
        # Its first line: http://127.0.0.1:PORT serves MODEL in bf16: why.
        first = (job.work / f"{name}.log").read_text().partition("\n")[0]
        return f"linnet serve{first.partition(' serves')[2]} 32 texts at once."
    if way.who.startswith("transformers"):
        batching = way.who == "transformers-batching"
        how = " --continuous-batching" if batching else ", one text at a time"
        return f"transformers serve {importlib.metadata.version('transformers')} in {way.precision}{how}"
    if job.llama_server is not None:
        return f"{job.llama_server.name} in {way.precision}, {SLOTS} slots"
    version = importlib.metadata.version("llama_cpp_python")
    return f"llama_cpp.server of llama-cpp-python {version} in {way.precision}, 1 slot"


def command_of(way: Way, job: Job, port: int) -> list[str]:
    """What starts it."""
    place = ["--host", HOST, "--port", str(port)]
    if way.who == "linnet":
        return [
            *[sys.executable, "-m", "linnet", "serve", str(job.folder), *place],
            *["--precision", way.precision],
        ]
    if way.who.startswith("transformers"):
        dtype = {"fp32": "float32", "bf16": "bfloat16"}[way.precision]
        batching = ["--continuous-batching"] * (way.who == "transformers-batching")
        return [
            *[sys.executable, "-m", "transformers.cli.transformers", "serve", str(job.folder), *place],
            *["--device", "cpu", "--dtype", dtype, *batching],
        ]
    gguf, threads = str(job.work / f"{way.precision}.gguf"), str(THREADS)
    if job.llama_server is not None:
        return [
            *[str(job.llama_server), "--model", gguf, *place, "--parallel", str(SLOTS)],
            *["--ctx-size", str(SLOTS * job.window), "--threads", threads],
        ]
    # Unless told otherwise a request that comes ends the one that is being answered.
    return [
        *[sys.executable, "-m", "llama_cpp.server", "--model", gguf, *place, "--interrupt_requests", "false"],
        *["--n_ctx", str(job.window), "--n_threads", threads, "--n_threads_batch", threads],
    ]


def body_of(way: Way, job: Job, prompt: str) -> bytes:
    """A request for exactly `new_tokens` of the likeliest tokens, streamed; each has another word for that."""
    from linnet.serve.shelf import name_of

    body: dict[str, Any] = {"prompt": prompt, "max_tokens": job.new_tokens, "stream": True}
    no_end = {str(job.end_of_text): -100}
    if way.who.startswith("transformers"):
        greedy = {"do_sample": False, "min_new_tokens": job.new_tokens, "pad_token_id": job.end_of_text}
        if (
            way.who == "transformers-batching"
        ):  # It knows no least length; a token that never comes ends nothing.
            greedy = {"do_sample": False, "eos_token_id": -1, "pad_token_id": job.end_of_text}
        body |= {"model": str(job.folder), "generation_config": json.dumps(greedy)}
        return json.dumps(body).encode()
    body["temperature"] = 0
    if way.who == "linnet":
        body |= {"model": name_of(str(job.folder)), "logit_bias": no_end}
        body["stream_options"] = {"include_usage": True}
    elif job.llama_server is not None:
        body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    else:
        body["logit_bias"] = no_end
    return json.dumps(body).encode()


# -- one that runs ---------------------------------------------------------------------------------------------------


class Server:
    """A server in a process of its own; `wake` starts it or lets it go on."""

    def __init__(
        self,
        name: str,
        job: Job,
        *,
        environment: Mapping[str, str] = os.environ,
        options: Sequence[str] = (),
    ) -> None:
        self.name, self.way, self.job = name, WAYS[name], job
        self.environment, self.options = environment, options
        self.address = (HOST, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._tree: list[psutil.Process] = []

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def wake(self) -> bool:
        """Whether it is a new process, which has not answered anything yet.

        Raises:
            CandidateError: it does not start.
        """
        if self._process is not None:
            for process in self._tree:
                process.resume()
            return False
        self.address = (HOST, free_port())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command_of(self.way, self.job, self.address[1]), *self.options],
                env=dict(self.environment),
                cwd=self.job.work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + SECONDS_TO_START
        has_health = self.way.who != "llama.cpp" or self.job.llama_server is not None
        while self.get("/health" if has_health else "/v1/models") is None:
            if self._process.poll() is not None or time.monotonic() > until:
                raise CandidateError(self.last_words())
            time.sleep(0.1)
        return True

    def get(self, path: str) -> Any:
        """What it says there; None: it does not answer with JSON and status 200."""
        url = f"http://{self.address[0]}:{self.address[1]}{path}"
        try:
            with DIRECTLY.open(url, timeout=10) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def sleep(self) -> None:
        """Compute nothing until it is woken."""
        self._see_tree()
        for process in self._tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
                while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    time.sleep(0.01)  # The signal reaches each of its threads a little later.

    def stop(self) -> None:
        """End it with all its children; `wake` starts another one."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()
        self._tree = []

    def memory(self, *, again: bool = True) -> int:
        """Bytes of its processes that are in memory now. Without `again` for those that were there when last asked."""
        if again:
            self._see_tree()
        found = 0
        for process in self._tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += process.memory_info().rss
        return found

    def last_words(self) -> str:
        """The last line of its log; the lines before it are shown. It is stopped."""
        self.stop()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        say("\n".join(lines[-LAST_LINES:]))
        return lines[-1].strip() if lines else "it ended without a word"

    @property
    def _log(self) -> Path:
        return self.job.work / f"{self.name}.log"

    def _see_tree(self) -> None:
        assert self._process is not None
        top = psutil.Process(self._process.pid)
        self._tree = [top, *top.children(recursive=True)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])
