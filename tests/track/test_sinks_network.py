"""Weights & Biases with an account: a server that cannot be used, and one that can, on the loopback."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Command
from tests.track.loopback_wandb import LoopbackWandb, loopback_wandb
from tests.track.sink_readers import (
    TRAIN,
    Points,
    add,
    assert_same,
    bits,
    in_wandb,
    points_of,
    running_sinks,
    wait_for,
)
from tests.warm import Warm

pytestmark = pytest.mark.slow  # each trains, and some wait for a server
KEY = "0123456789" * 4


@pytest.fixture(params=["refuses", "never answers", "answers nonsense"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A W&B server that cannot be used, and an account for it."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if request.param == "refuses":
            port = 9
        elif request.param == "answers nonsense":
            threading.Thread(target=answer_nonsense, args=(listening,), daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        yield request.param


def answer_nonsense(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed at the end of the test
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
                )


def test_without_a_server_wandb_goes_on_offline(
    linnet: Command, folder: Path, server: str, plain: dict[str, Any]
) -> None:
    started = time.monotonic()
    result = linnet(*TRAIN, "track.sinks=wandb", "track.wait=60")
    assert result.code == 0, result.err
    assert time.monotonic() - started < 60
    assert bits(folder / "run") == plain
    sentences = [line for line in result.err.splitlines() if line.startswith("wandb: ")]
    assert len(sentences) == 1, result.err
    sentence = sentences[0]
    assert sentence.startswith("wandb: offline, because ")
    assert {
        "refuses": "Connection refused",
        "never answers": "timed out",
        "answers nonsense": "did not take",
    }[server] in sentence
    assert KEY not in result.out + result.err
    assert_same(in_wandb(folder / "run"), points_of(folder / "run"))
    assert not any(
        KEY.encode() in path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()
    )


def at_the_server(server: LoopbackWandb) -> Points:
    [run_id] = server.runs
    points: Points = {}
    for row in server.history(run_id):
        for name, value in row.items():
            if name.startswith(("train/", "validation/")):
                add(points, name, row["_step"], float(value))
    return points


def test_with_an_account_the_points_reach_the_server_once_through_a_kill(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, Any]
) -> None:
    train = (*TRAIN, "track.sinks=wandb", "track.wait=60", "sample.max_new_tokens=0")
    run = folder / "run"
    with loopback_wandb() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with Warm() as warm:
            code, output = warm.run(*train, folder=folder, faults={"point": "step", "count": 14})
            assert code == -signal.SIGKILL, output
            wait_for(lambda: not running_sinks(folder))
            assert sorted(at_the_server(server)["train/loss"]) == list(range(1, 14))
            code, output = warm.run(*train, folder=folder)
        assert code == 0, output
        assert bits(run)["tensors"] == plain["tensors"]
        assert "wandb:" not in output, "nothing is missing, nothing is to be typed"
        assert_same(at_the_server(server), points_of(run), timed=False)
        sent = "\n".join(server.sent)
    for private in (f'"{socket.gethostname()}"', str(home), KEY, "requirements"):
        assert private not in sent, private


def test_what_was_kept_offline_is_uploaded_whole(
    linnet: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = linnet(*TRAIN, "track.sinks=wandb", "track.wait=60", "sample.max_new_tokens=0")
    [command] = re.findall(r"`wandb (sync \S+)`", result.err)
    with loopback_wandb() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        words = [sys.executable, "-m", "wandb", *command.split()]
        subprocess.run(words, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        assert_same(at_the_server(server), points_of(folder / "run"))
