"""How much a server takes on: bodies, slow senders, slow readers, a queue."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.servers import Served, request_bytes, serving

TEXT = {"model": "plain", "prompt": "Hi", "max_tokens": 1}
QUEUE, TOGETHER = 8, 1


def test_a_body_of_10_mb(server: Served) -> None:
    answer = server.post("/v1/completions", TEXT | {"user": "x" * 10_000_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert server.post("/v1/completions", TEXT).status_code == 200


def test_bodies_without_a_length(server: Served) -> None:
    def parts(size: int) -> Iterator[bytes]:
        whole = json.dumps(TEXT | {"prompt": "x" * size}).encode()
        for start in range(0, len(whole), 1 << 16):
            yield whole[start : start + (1 << 16)]

    headers = {"content-type": "application/json"}
    with server.http() as client:
        fine = client.post("/v1/completions", content=parts(1000), headers=headers)
        assert fine.status_code == 200
        large = client.post("/v1/completions", content=parts(1 << 21), headers=headers)
        assert large.status_code == 413


def test_a_body_of_exactly_the_limit(server: Served) -> None:
    for more, status in ((0, 200), (1, 413)):
        body = json.dumps(TEXT | {"user": ""}).encode()
        body = body[:-2] + b"x" * ((1 << 20) - len(body) + more) + body[-2:]
        with server.http() as client:
            answer = client.post(
                "/v1/completions", content=body, headers={"content-type": "application/json"}
            )
        assert answer.status_code == status


def test_a_length_that_lies(server: Served) -> None:
    with server.connect() as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{"
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 413")


def drip(client: socket.socket, data: bytes, until: threading.Event) -> float:
    """Send a byte a second; returns how many seconds the server went along."""
    started = time.monotonic()
    for byte in data:
        try:
            client.send(bytes([byte]))
            client.settimeout(1)
            if client.recv(65536) == b"":
                break
        except TimeoutError:
            pass
        except OSError:
            break
        if until.is_set():
            break
    return time.monotonic() - started


def slow_senders(server: Served, *, count: int) -> None:
    """`count` clients of three kinds, that send the head, the body or nothing; others hardly notice."""
    whole = request_bytes("/v1/completions", json.dumps(TEXT).encode())
    head = whole.index(b"\r\n\r\n") + 4
    stop = threading.Event()

    def one(number: int) -> float:
        with server.connect() as client:
            kind = number % 3
            if kind == 1:
                client.sendall(whole[:head])
            return (
                drip(client, {0: whole, 1: whole[head:]}.get(kind, b""), stop) if kind < 2 else silent(client)
            )

    def silent(client: socket.socket) -> float:
        started = time.monotonic()
        client.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        return time.monotonic() - started

    with ThreadPoolExecutor(count) as pool:
        dripping = [pool.submit(one, number) for number in range(count)]
        time.sleep(1.5)
        began = time.monotonic()
        for _ in range(10):
            assert server.post("/v1/completions", TEXT).status_code == 200
        assert (time.monotonic() - began) / 10 < 1.0
        longest = max(future.result() for future in dripping)
        stop.set()
    assert longest < 10.5, f"a slow client was kept for {longest:.1f} s"


@pytest.mark.slow
def test_slow_senders_are_closed_and_others_hardly_notice(server: Served) -> None:
    slow_senders(server, count=60)


@pytest.mark.torture
def test_500_slow_senders(server: Served) -> None:
    slow_senders(server, count=500)


def test_the_head_has_a_limit(server: Served) -> None:
    with server.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        answered = b""
        try:
            for number in range(2000):
                client.sendall(f"X-{number}: {'x' * 200}\r\n".encode())
            client.settimeout(5)
            answered = client.recv(100)
        except OSError:
            answered = b"HTTP/1.1 400"  # It was closed while more was sent.
    assert answered.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert server.post("/v1/completions", TEXT).status_code == 200


def test_a_kept_connection_serves_again_and_again(server: Served) -> None:
    client = http.client.HTTPConnection("localhost", server.port, timeout=20)
    for _ in range(50):
        client.request("POST", "/v1/completions", json.dumps(TEXT), {"content-type": "application/json"})
        answer = client.getresponse()
        assert answer.status == 200
        answer.read()
    client.close()


@pytest.fixture(scope="module")
def small(models: Path) -> Iterator[Served]:
    words = ("--precision", "fp32", "--queue", str(QUEUE), "--together", str(TOGETHER))
    with serving(str(models / "endless"), *words) as served:
        yield served


def first_text(client: socket.socket) -> float:
    """When the first text came."""
    data = b""
    while b'"text":' not in data:
        more = client.recv(65536)
        assert more, data
        data += more
    return time.monotonic()


def test_more_than_the_queue_holds_is_sent_away_at_once(small: Served) -> None:
    """V2, ten times the queue's cap: who is let in is served in order, the others hear so within 50 ms."""
    body = {"model": "endless", "prompt": "x", "max_tokens": 100, "stream": True, "temperature": 0}
    assert small.post("/v1/completions", body | {"max_tokens": 1}).status_code == 200  # It is loaded now.
    data = request_bytes("/v1/completions", json.dumps(body).encode())
    endless = request_bytes("/v1/completions", json.dumps(body | {"max_tokens": 16_384}).encode())
    before = small.metric("linnet_admitted_total")
    with contextlib.ExitStack() as held:
        admitted = [held.enter_context(small.connect()) for _ in range(1 + QUEUE)]
        for number, client in enumerate(admitted):
            client.sendall(data if number else endless)
            while small.metric("linnet_admitted_total") < before + number + 1:  # So that there is an order.
                time.sleep(0.01)
        excess = [held.enter_context(small.connect()) for _ in range(10 * QUEUE)]
        took = []
        for client in excess:
            started = time.monotonic()
            client.sendall(data)
            answer = client.recv(65536)
            took.append(time.monotonic() - started)
            while not answer.endswith(b"}}"):
                answer += client.recv(65536)
            head, _, said = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429"), head
            assert re.search(rb"^retry-after: [1-9]\d?\r$", head + b"\r", re.M)
            assert json.loads(said)["error"]["code"] == "queue_full"
        assert sorted(took)[len(took) // 2] < 0.05, sorted(took)
        admitted.pop(0).close()  # Now it is the others' turn.
        with ThreadPoolExecutor(len(admitted)) as pool:
            begun = list(pool.map(first_text, admitted))
        assert begun == sorted(begun)
    small.wait_until_quiet()
    assert small.post("/v1/completions", body | {"max_tokens": 1}).status_code == 200


def test_texts_count_in_the_queue_not_requests(small: Served) -> None:
    many = {"model": "endless", "prompt": "x", "max_tokens": 300, "n": 64, "stream": True}
    with small.http() as client, client.stream("POST", "/v1/completions", json=many) as answer:
        assert answer.status_code == 200
        assert small.post("/v1/completions", many | {"n": 1}).status_code == 429
    small.wait_until_quiet()


def test_a_client_that_does_not_read_holds_up_nobody(small: Served) -> None:
    body = json.dumps({"model": "endless", "prompt": "x", "max_tokens": 4000, "stream": True}).encode()
    with small.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request_bytes("/v1/completions", body))
        time.sleep(0.3)
        with httpx.Client(timeout=30) as other:
            quick = {"model": "endless", "prompt": "x", "max_tokens": 5}
            assert other.post(f"{small.url}/v1/completions", json=quick).status_code == 200
    small.wait_until_quiet()
