"""A real `linnet serve` in a process of its own, and small models for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai

from linnet.model.chat_template import write_template
from linnet.model.pretrained import save_model
from linnet.turns.template import CHAT
from tests.generate.networks import shift
from tests.model.examples import tiny, tokenizer

ROOT = Path(__file__).parent.parent.parent
WINDOW = 256


def write_models(folder: Path) -> Path:
    """`talk` was trained on turns, `plain` was not, `endless` never ends by itself; all are random."""
    for seed, name in enumerate(("talk", "plain", "endless")):
        network = tiny(seed, n_positions=WINDOW)
        if name == "endless":
            shift(network, tokenizer().end_of_text, by=-100.0)
        (folder / name).mkdir(parents=True)
        save_model(folder / name, network, tokenizer=tokenizer())
        if name != "plain":
            write_template(folder / name, CHAT, end_token=tokenizer().end_token)
    return folder


class Served:
    """The process. `url`: where it serves; `said`: what it printed so far."""

    def __init__(self, *words: str, env: dict[str, str] | None = None, key: str = "none") -> None:
        self.key = key
        self.process = subprocess.Popen(
            [sys.executable, "-m", "linnet", "serve", *words, "--port", "0"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self._lines: list[str] = []
        self._clients: list[openai.OpenAI] = []
        first = self.process.stdout.readline()
        self._lines.append(first)
        address = re.match(r"http://(\S+):(\d+) serves ", first)
        assert address, first + self.process.stdout.read()
        self.host, self.port = address[1], int(address[2])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def openai(self, **options: Any) -> openai.OpenAI:
        """The official client; its connections are closed when the server has ended."""
        client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=120, **options
        )
        self._clients.append(client)
        return client

    def http(self, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def post(self, path: str, body: Any) -> httpx.Response:
        with self.http() as client:
            return client.post(path, json=body)

    def metric(self, name: str) -> float:
        with self.http() as client:
            page = client.get("/metrics").text
        found = re.search(rf"^{name} (\S+)$", page, re.M)
        assert found, page
        return float(found[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def wait_until_quiet(self, *, seconds: float = 20) -> None:
        """Until nothing is written and nobody waits."""
        until = time.monotonic() + seconds
        while self.metric("linnet_running") or self.metric("linnet_waiting"):
            assert time.monotonic() < until, "texts go on"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 40) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.end(seconds=seconds)

    def end(self, *, seconds: float = 40) -> int:
        try:
            code = self.process.wait(timeout=seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(timeout=10)
            for client in self._clients:
                client.close()
            assert self.process.stdout is not None
            self.process.stdout.close()
        return code


@contextlib.contextmanager
def serving(*words: str, **options: Any) -> Iterator[Served]:
    """A server that ends by SIGTERM and without a traceback."""
    server = Served(*words, **options)
    try:
        yield server
    except BaseException:
        server.process.kill()
        server.end()
        print(server.said[-8000:])
        raise
    assert server.stop() == 0, server.said
    assert "Traceback" not in server.said, server.said


def request_bytes(path: str, body: bytes, *, headers: Sequence[str] = ()) -> bytes:
    """A POST as it goes over the wire."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
