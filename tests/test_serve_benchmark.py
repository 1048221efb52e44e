"""Serving under load: the clients measure what a server of known speed does, the figures are those that Linnet's own
server counts, and the short form prints what it promises."""

import asyncio
import importlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TOKENS = 12
Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


# -- clients before a server whose speed is known --------------------------------------------------------------------


def event(text: str, **more: Any) -> bytes:
    choice = {"text": text, "index": 0, "finish_reason": more.pop("finish_reason", None)}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """A piece of a body with `Transfer-Encoding: chunked`."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def answering(answer: Answering, *, chunked: bool = True) -> AsyncIterator[tuple[str, int]]:
    """A server on a real socket that reads a request, says 200 and lets `answer` write."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"Content-Length: (\d+)", head)
        assert size is not None
        await reader.readexactly(int(size[1]))
        kind = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        writer.write(b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n")
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]


def ask(module: Any, answer: Answering, *, requests: int, clients: int, chunked: bool = True) -> Any:
    async def go() -> Any:
        async with answering(answer, chunked=chunked) as address:
            bodies = [b"{}"] * requests
            return await module("clients").ask_all(address, bodies, clients=clients, tokens=TOKENS)

    return asyncio.run(go())


@pytest.mark.parametrize("chunked", [True, False])
def test_waits_are_those_of_the_server(module: Any, chunked: bool) -> None:
    """0.3 s to the first of 11 pieces and 0.05 s between them: 0.8 s an answer; two at once, two after another."""
    wrap = chunk if chunked else bytes

    async def answer(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        for number in range(11):
            if number:
                await asyncio.sleep(0.05)
            if number == 3:  # An event in two packets is there with the second.
                half = event("word ")
                writer.write(wrap(half[:9]))
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.write(wrap(half[9:]))
            else:
                writer.write(wrap(event("word ")))
            await writer.drain()
        # The twelfth token has no text.
        writer.write(wrap(event("", finish_reason="length", usage={"completion_tokens": TOKENS})))
        writer.write(wrap(b"data: [DONE]\n\n") + (b"0\r\n\r\n" if chunked else b""))

    load = ask(module, answer, requests=4, clients=2, chunked=chunked)
    percentile = module("clients").percentile
    assert load.tokens == 4 * TOKENS
    assert load.unfinished == 0
    assert load.seconds == pytest.approx(2 * 0.82, abs=0.3)
    assert load.tokens_per_s == pytest.approx(4 * TOKENS / load.seconds)
    assert len(load.first) == 4
    assert percentile(load.first, 0.5) == pytest.approx(0.3, abs=0.1)
    assert len(load.between) == 4 * 10
    assert percentile(load.between, 0.5) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("end", "tokens", "unfinished"),
    [
        (event("", finish_reason="length"), TOKENS, 0),
        (event("", finish_reason="stop"), 2, 1),
        (event("", finish_reason="stop", usage={"completion_tokens": 3}), 3, 1),
    ],
)
def test_tokens_that_were_not_written_do_not_count(
    module: Any, end: bytes, tokens: int, unfinished: int
) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(chunk(event("a") + event("b") + end) + b"0\r\n\r\n")

    load = ask(module, answer, requests=1, clients=1)
    assert (load.tokens, load.unfinished) == (tokens, unfinished)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (chunk(b'data: {"error": "no memory"}\n\n') + b"0\r\n\r\n", "the server says: no memory"),
        (chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n", "an answer without text"),
        (chunk(event("a")) + b"ff\r\nhalf", "the connection broke"),
        (chunk(event("a")), "the connection broke"),
    ],
)
def test_what_is_no_answer_is_no_figure(module: Any, sent: bytes, message: str) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)

    with pytest.raises(module("clients").UnansweredError, match=message):
        ask(module, answer, requests=3, clients=2)


def test_percentiles(module: Any) -> None:
    percentile = module("clients").percentile
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([5.0], 0.99) == 5.0


# -- the goals -------------------------------------------------------------------------------------------------------


def test_goals_take_the_fastest_peer_and_the_same_round(
    module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    serve, clients = module("serve"), module("clients")

    def turn(speed: float) -> Any:
        return serve.Turn(clients.Load(int(speed), 1.0, [0.1], [0.01], 0), 1.0)

    speeds = {
        "linnet": (300, 600, 400),
        "transformers-bf16": (50, 100, 50),
        "transformers-batching-bf16": (100, 150, 200),
        "llama.cpp-f16": (300, 400, 300),
    }
    turns = {(name, 32): [turn(one) for one in found] for name, found in speeds.items()}
    figures = {one["name"]: one for one in serve.compare(turns, out=sys.stdout)}
    batching = figures["linnet-32-times-transformers-batching-bf16-32"]
    assert (batching["min"], batching["median"], batching["max"]) == (2.0, 3.0, 4.0)
    assert figures["linnet-32-times-transformers-bf16-32"]["median"] == 6.0
    said = capsys.readouterr().out
    assert "goal 3, met: linnet-32-times-transformers-batching-bf16-32 is 3.0" in said
    assert "goal 1, met: linnet-32-times-llama.cpp-f16-32 is 1.333" in said
    turns["llama.cpp-q8_0", 32] = [turn(601)] * 3
    serve.compare(turns, out=sys.stdout)
    assert "goal 1, not met: linnet-32-times-llama.cpp-q8_0-32" in capsys.readouterr().out


# -- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(module: Any, tmp_path: Path) -> Iterator[Any]:
    """`linnet serve` with random weights of the small shape, as the benchmark starts it."""
    serve = module("serve")
    args = serve.parse(["--short", "--only", "linnet-fp32", "--new-tokens", str(TOKENS)])
    job, tokenizer = serve.make_job(args, tmp_path)
    one = module("servers").Server("linnet-fp32", job)
    one.tokenizer = tokenizer
    yield one
    one.stop()


def metric(server: Any, name: str) -> float:
    url = f"http://{server.address[0]}:{server.address[1]}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.M)
    assert found is not None
    return float(found[1])


@pytest.mark.slow
def test_the_server_counts_the_same(module: Any, server: Any) -> None:
    serve = module("serve")
    prompts = module("clients").draw_prompts(server.tokenizer, 2 + 9, longest=200, seed=1)
    assert server.wake()
    assert server.get("/no-such-path") is None
    turn = asyncio.run(serve.measure(server, prompts, clients=3, warm=2))
    assert turn.load.tokens == 9 * TOKENS
    assert turn.load.unfinished == 0
    assert metric(server, "linnet_written_tokens_total") == 11 * TOKENS
    lengths = [len(server.tokenizer.encode(prompt)) for prompt in prompts]
    # End-of-text stands before each.
    assert metric(server, "linnet_prompt_tokens_total") == sum(lengths) + len(prompts)
    assert (
        15 <= min(lengths) < 100 < max(lengths) <= 205
    )  # Cut anew at its ends, it may be some tokens longer.
    # Ours begin a little earlier and end a little later than those of the server.
    waited = metric(server, "linnet_first_token_seconds_sum") / 11
    assert sum(turn.load.first) / 9 < 3 * waited + 0.2
    assert metric(server, "linnet_first_token_seconds_count") == 11
    assert turn.memory_gb >= psutil.Process(server._process.pid).memory_info().rss / 1e9 * 0.9


@pytest.mark.slow
def test_who_sleeps_computes_nothing_and_answers_when_woken(module: Any, server: Any) -> None:
    server.wake()
    process = psutil.Process(server._process.pid)
    server.sleep()
    assert process.status() == psutil.STATUS_STOPPED
    assert not server.wake()
    assert server.get("/v1/models")["data"][0]["id"] == "weights"
    server.sleep()
    server.stop()
    assert not process.is_running()
    assert server.wake()


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(module: Any, server: Any) -> None:
    server.options = ["--queue", "none"]
    with pytest.raises(module("turns").CandidateError, match="--queue"):
        server.wake()
    assert not server.is_running


@pytest.mark.slow
def test_the_short_form(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "serve.py"), "--short", "--only", "linnet", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert all(row.keys() == {"name", "unit", "min", "median", "max"} for row in rows)
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in rows)
    figures = {row["name"]: row for row in rows}
    for clients in (1, 4):
        name = f"linnet-{clients}"
        assert figures[name]["unit"] == "tokens/s"
        for what in ("first-token", "between-tokens"):
            assert figures[f"{name}-{what}-p50"]["max"] <= figures[f"{name}-{what}-p99"]["max"]
        assert 0.1 < figures[f"{name}-memory"]["max"] < 4
    # One client gets 16 tokens in the time of the first and of 15 waits: speed and waits must say the same.
    waits = (
        figures["linnet-1-first-token-p50"]["median"] + 15 * figures["linnet-1-between-tokens-p50"]["median"]
    )
    assert figures["linnet-1"]["median"] == pytest.approx(16 / waits, rel=0.4)
    assert figures["linnet-memory-unloaded"]["max"] < figures["linnet-memory-loaded"]["max"]
    assert re.search(r"^linnet: linnet serve weights in \w+: .*32 texts at once", done.stderr, re.M)
    assert not list(tmp_path.iterdir())
