"""Clients that leave: nothing goes on for them, and nothing of them stays."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serve.servers import Served, request_bytes, serving

LONG = {"model": "endless", "prompt": "x", "max_tokens": 16_384, "stream": True}
PROMPT = "The linnet learns its song by listening. " * 30


@pytest.fixture(scope="module")
def endless(models: Path) -> Iterator[Served]:
    """One text at a time, so that a second one waits."""
    with serving(str(models / "endless"), "--precision", "fp32", "--together", "1") as served:
        served.post("/v1/completions", LONG | {"max_tokens": 1, "stream": False})
        yield served


def send(server: Served, body: dict, *, path: str = "/v1/completions") -> socket.socket:
    client = server.connect()
    client.sendall(request_bytes(path, json.dumps(body).encode()))
    return client


def written(server: Served) -> float:
    return server.metric("linnet_written_tokens_total")


def assert_still(server: Served) -> None:
    """Nothing is written any more, though a text would have gone on for long."""
    server.wait_until_quiet(seconds=2)
    before = written(server)
    time.sleep(0.2)
    assert written(server) == before


@pytest.mark.parametrize("stream", [True, False])
def test_in_mid_text(endless: Served, stream: bool) -> None:
    before = written(endless)
    client = send(endless, LONG | {"stream": stream})
    if stream:
        assert b"data:" in client.recv(65536) + client.recv(65536)
    while written(endless) < before + 20:
        time.sleep(0.01)
    client.close()
    assert_still(endless)
    assert written(endless) - before < 16_384


def test_half_closed_counts_as_gone(endless: Served) -> None:
    client = send(endless, LONG)
    client.recv(100)
    client.shutdown(socket.SHUT_WR)
    assert_still(endless)
    client.close()


def test_before_the_first_token(endless: Served) -> None:
    first = send(endless, LONG)
    first.recv(100)
    waiting = [send(endless, LONG) for _ in range(5)]
    while endless.metric("linnet_waiting") < 5:
        time.sleep(0.01)
    for client in waiting:
        client.close()
    while endless.metric("linnet_waiting"):
        time.sleep(0.01)
    assert endless.metric("linnet_running") == 1
    first.close()
    assert_still(endless)


def test_at_once(endless: Served) -> None:
    """The connection is gone before the request is looked at; also in the middle of its body."""
    left = endless.metric("linnet_clients_left_total")
    for _ in range(20):
        client = send(endless, LONG | {"prompt": PROMPT})
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # A reset, not an end.
        client.close()
    whole = request_bytes("/v1/completions", json.dumps(LONG).encode())
    for size in (10, len(whole) - 30, len(whole) - 1):
        with endless.connect() as client:
            client.sendall(whole[:size])
    assert_still(endless)
    assert endless.metric("linnet_clients_left_total") - left <= 20


def test_while_several_choices_wait(endless: Served) -> None:
    client = send(endless, LONG | {"n": 20})
    client.recv(100)
    assert endless.metric("linnet_running") + endless.metric("linnet_waiting") == 20
    client.close()
    assert_still(endless)


async def one_client(server: Served, number: int, random_: random.Random) -> str:
    """Ask; every third leaves at some moment. Returns what became of it."""
    leaves = random_.random() < 0.3
    path, body = random_.choice(
        [
            ("/v1/completions", {"model": "endless", "prompt": PROMPT[: random_.randrange(1, 1200)]}),
            ("/v1/completions", {"model": "plain", "prompt": [[5, 6], [7]], "n": 2}),
            (
                "/v1/chat/completions",
                {"model": "talk", "messages": [{"role": "user", "content": f"{number}"}]},
            ),
        ]
    )
    body = body | {"max_tokens": random_.randrange(1, 40), "stream": random_.random() < 0.7, "seed": number}
    if leaves:
        body["max_tokens"] = 2000
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        headers = ["Connection: close"]
        writer.write(request_bytes(path, json.dumps(body).encode(), headers=headers))
        await writer.drain()
        if leaves and random_.random() < 0.5:
            await asyncio.sleep(
                random_.random() * 0.05
            )  # Before the first token, or while the prompt is read.
            return "left"
        data = await reader.read(400 if leaves else -1)
        if leaves:
            return "left"
        assert data.startswith(b"HTTP/1.1 200"), data[:400]
        assert b"[DONE]" in data or b'"usage"' in data
        return "served"
    finally:
        writer.transport.abort()


async def crowd(server: Served, *, requests: int, clients: int) -> dict[str, int]:
    random_ = random.Random(7)
    gate = asyncio.Semaphore(clients)
    found = {"served": 0, "left": 0}

    async def guarded(number: int) -> None:
        async with gate:
            found[await one_client(server, number, random.Random(random_.random()))] += 1

    await asyncio.gather(*(guarded(number) for number in range(requests)))
    return found


def many_come_and_go(models: Path, *, requests: int, clients: int) -> None:
    """V1: memory, slots, threads and descriptors are afterwards where they were."""
    names = [str(models / name) for name in ("talk", "plain", "endless")]
    with serving(*names, "--precision", "fp32", "--queue", "1024") as server:
        asyncio.run(crowd(server, requests=100, clients=clients))  # All that is made once is there now.
        server.wait_until_quiet()
        process = psutil.Process(server.process.pid)
        time.sleep(0.5)
        before = (process.num_fds(), process.num_threads())
        memory = process.memory_info().rss
        found = asyncio.run(crowd(server, requests=requests, clients=clients))
        assert found["left"] > requests / 5
        assert sum(found.values()) == requests
        server.wait_until_quiet(seconds=5)
        time.sleep(0.5)
        assert (process.num_fds(), process.num_threads()) == before
        assert server.metric("linnet_connections") == 1  # This one.
        assert process.memory_info().rss - memory < 64e6
        assert written_alone(server)


def written_alone(server: Served) -> bool:
    answer = server.post("/v1/completions", {"model": "plain", "prompt": "x", "max_tokens": 3})
    return answer.status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_300_requests_of_256_clients_of_whom_many_leave(models: Path) -> None:
    many_come_and_go(models, requests=300, clients=256)


@pytest.mark.torture
def test_10_000_requests_of_256_clients_of_whom_many_leave(models: Path) -> None:
    many_come_and_go(models, requests=10_000, clients=256)
