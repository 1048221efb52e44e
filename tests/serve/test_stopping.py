"""Start, end and idleness: what is said, which exit codes there are, and that memory goes back."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import save_model
from tests.model.examples import tokenizer
from tests.serve.servers import ROOT, Served, request_bytes, serving


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def drained(models: Path, *, streams: int, tokens: int) -> list[bytes]:
    """SIGTERM while all of them are written."""
    server = Served(str(models / "endless"), "--precision", "fp32", "--together", str(streams))
    body = {"model": "endless", "prompt": "x", "max_tokens": tokens, "stream": True}
    data = request_bytes("/v1/completions", json.dumps(body).encode())
    clients = [server.connect() for _ in range(streams)]
    for client in clients:
        client.sendall(data)
    for client in clients:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    idle = server.connect()
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    answers = [b""] * streams

    def collect(number: int) -> None:
        answers[number] = read_all(clients[number])

    threads = [threading.Thread(target=collect, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    assert server.end(seconds=40) == 0, server.said
    assert time.monotonic() - started < 30
    for thread in threads:
        thread.join()
    for client in (*clients, idle):
        client.close()
    assert "Traceback" not in server.said
    return answers


def test_streams_are_written_to_their_end(models: Path) -> None:
    for answer in drained(models, streams=5, tokens=300):
        assert answer.count(b'"finish_reason":"length"') == 1
        assert answer.count(b"data: ") == 302 or answer.endswith(b"0\r\n\r\n")
        assert b"data: [DONE]\n\n" in answer


@pytest.mark.slow
def test_50_streams_that_would_take_longer_end_in_time(models: Path) -> None:
    """V10: after 20 s they end where they are."""
    for answer in drained(models, streams=50, tokens=16_384):
        assert b"data: [DONE]\n\n" in answer
        assert answer.count(b'"finish_reason":"length"') == 1


def test_a_second_signal_is_immediate(models: Path) -> None:
    server = Served(str(models / "endless"), "--precision", "fp32")
    with server.connect() as client:
        body = {"model": "endless", "prompt": "x", "max_tokens": 16_384, "stream": True}
        client.sendall(request_bytes("/v1/completions", json.dumps(body).encode()))
        client.recv(100)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        started = time.monotonic()
        assert server.stop(signal.SIGINT) == 130
        assert time.monotonic() - started < 2


def test_ctrl_c_ends_well(models: Path) -> None:
    server = Served(str(models / "plain"), "--precision", "int8")
    assert "serves plain in int8: asked for." in server.said
    assert server.stop(signal.SIGINT, seconds=10) == 0


def test_the_first_line_says_address_models_and_precision(models: Path) -> None:
    with serving(str(models / "talk"), str(models / "plain")) as server:
        assert f"http://127.0.0.1:{server.port} serves talk, plain in " in server.said


def start_fails(*words: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "linnet", "serve", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": "/usr/bin", "HF_HUB_OFFLINE": "1"},
    )
    return done.returncode, done.stderr.strip().splitlines()


def test_a_port_that_is_taken(models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, lines = start_fails(str(models / "plain"), "--port", port)
    assert code == 1
    assert len(lines) == 1
    assert port in lines[0]


def test_models_that_cannot_be_served(models: Path, tmp_path: Path) -> None:
    code, lines = start_fails(str(tmp_path))
    assert (code, len(lines)) == (1, 1)
    (tmp_path / "talk").symlink_to(models / "talk")
    (tmp_path / "more").mkdir()
    code, lines = start_fails(str(models / "talk"), str(tmp_path / "talk"))
    assert (code, len(lines)) == (2, 1)
    assert "talk" in lines[0]


def test_a_run_is_called_by_its_name(models: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "math"
    run.mkdir(parents=True)
    (run / "model").symlink_to(models / "plain")
    (run / "recipe.toml").write_text("")
    with serving(str(run), "--precision", "fp32") as server:
        assert [model.id for model in server.openai().models.list()] == ["math"]


def test_a_damaged_model_is_said_to_the_client(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (models / "plain").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with serving(str(broken), str(models / "plain"), "--precision", "fp32") as server:
        answer = server.post("/v1/completions", {"model": "broken", "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_error")
        assert "model.safetensors" in answer.json()["error"]["message"]
        assert server.post("/v1/completions", {"model": "plain", "prompt": "x"}).status_code == 200


@pytest.mark.slow
def test_idle_models_give_their_memory_back(tmp_path: Path) -> None:
    """Each of these takes 4 * 35 MB in fp32; what is left of them is little, and they come back when asked.

    What the first use leaves behind for good (code and buffers of torch, some 55 MB) is not theirs.
    """
    size = 0
    for name in ("one", "two"):
        network = GPT2(GPT2Config(300, 1024, 768, 5, 12))
        size = 4 * sum(parameter.numel() for parameter in network.parameters())
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, network, tokenizer=tokenizer())
    words = [str(tmp_path / "one"), str(tmp_path / "two"), "--precision", "fp32", "--idle-minutes", "0.1"]
    with serving(*words) as server:
        process = psutil.Process(server.process.pid)
        ask = {"prompt": "x" * 600, "max_tokens": 20, "n": 4}
        before = process.memory_info().rss
        for round in range(3):
            for name in ("one", "two"):
                assert server.post("/v1/completions", ask | {"model": name}).status_code == 200
            loaded = process.memory_info().rss
            assert server.metric("linnet_models_loaded") >= 1
            until = time.monotonic() + 20
            while server.metric("linnet_models_loaded"):
                assert time.monotonic() < until
                time.sleep(0.1)
            time.sleep(0.3)
            given_back = process.memory_info().rss
            assert loaded - before > 1.5 * size
            # The first time with torch's own: 58 and 66 MB were seen, of 139 that a model has.
            assert given_back - before < (0.4 if round else 0.75) * size
            before = given_back
