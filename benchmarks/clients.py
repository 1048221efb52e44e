"""Clients that ask a server over the network, many at once, and write down when each piece of an answer came.

What   `draw_prompts` makes prompts of mixed length; `ask_all` sends them from some clients, each one after another, and
       returns a `Load`: tokens, seconds, the waits for first tokens and the waits between tokens.
Why    A server is as quick as its clients find it. They share the processor with it, so they must cost next to nothing:
       less than a library for HTTP, which takes about as long for a token as a small model.
How    Bare streams of asyncio. While an answer comes, bytes are kept with their times; they are read when all is over.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
SHORTEST, LONGEST = 20, 400  # tokens of a prompt
SECONDS = 600  # for an answer; who takes longer is taken as stuck
Address = tuple[str, int]


class UnansweredError(Exception):
    """A request that got no answer; the text says what came instead."""


@dataclass
class Heard:
    """An answer as it came over the wire."""

    began: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What was in it. `times`: when each piece of text came, in seconds since `began`."""

    began: float
    times: list[float]
    tokens: int


@dataclass(frozen=True)
class Load:
    """What all clients of a level saw."""

    tokens: int
    seconds: float
    """From the first request to the end of the last answer."""
    first: list[float]
    between: list[float]
    unfinished: int
    """Answers with fewer tokens than were asked for."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


# -- asking ----------------------------------------------------------------------------------------------------------


def read_pages() -> str:
    """The project's own pages: real text that is always there."""
    return "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))


def draw_prompts(tokenizer: Any, count: int, *, longest: int = LONGEST, seed: int) -> list[str]:
    """Cuttings from the pages, SHORTEST to `longest` tokens long, all lengths alike often."""
    pages = read_pages()
    draw = random.Random(seed)
    prompts = []
    for _ in range(count):
        length = draw.randint(min(SHORTEST, longest), longest)
        at = draw.randrange(len(pages) - 20 * length)
        # A token has a few characters, never 20 of them on average.
        prompts.append(tokenizer.decode(tokenizer.encode(pages[at : at + 20 * length])[:length]))
    return prompts


async def ask(address: Address, body: bytes) -> Heard:
    """Send one request; the answer with its times.

    Raises:
        UnansweredError: another status than 200, or a connection that ends too early.
    """
    heard = Heard(time.perf_counter())
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(_head(address, body) + body)
                await _listen(reader, heard)
            finally:
                writer.close()
    except TimeoutError:
        raise UnansweredError(f"an answer was not there after {SECONDS} s") from None
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise UnansweredError(f"the connection broke: {type(error).__name__} {error}") from error
    return heard


def _head(address: Address, body: bytes) -> bytes:
    lines = (
        "POST /v1/completions HTTP/1.1",
        f"Host: {address[0]}:{address[1]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _listen(reader: asyncio.StreamReader, heard: Heard) -> None:
    status = (await reader.readline()).split()[1:2]
    headers = b""
    while (line := await reader.readline()).strip():
        headers += line.lower()
    if status != [b"200"]:
        said = await reader.read(2000)
        raise UnansweredError(
            f"status {b''.join(status).decode() or 'none'}: {said.decode(errors='replace')}"
        )
    if b"transfer-encoding: chunked" not in headers:
        while piece := await reader.read(1 << 16):
            heard.pieces.append((time.perf_counter(), piece))
        return
    while size := int(await reader.readline(), 16):
        piece = await reader.readexactly(size + 2)
        heard.pieces.append((time.perf_counter(), piece[:-2]))


async def ask_all(address: Address, bodies: Sequence[bytes], *, clients: int, tokens: int) -> Load:
    """`clients` at once take one body after another until none is left. `tokens`: what each answer should have.

    Raises:
        UnansweredError: one of them was not answered.
    """
    waiting = iter(bodies)
    heard: list[Heard] = []

    async def client() -> None:
        for body in waiting:
            heard.append(await ask(address, body))

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    seconds = time.perf_counter() - started
    return sum_up([read_answer(one, tokens=tokens) for one in heard], seconds=seconds, tokens=tokens)


# -- reading ---------------------------------------------------------------------------------------------------------


def events_of(heard: Heard) -> Iterator[tuple[float, dict[str, Any]]]:
    """Server-sent events, each with the time at which it was there whole."""
    rest = b""
    for at, piece in heard.pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield at, json.loads(data)


def read_answer(heard: Heard, *, tokens: int) -> Answer:
    """The tokens are those of the server's own count; without one, `tokens` where it says that the length ended it,
    else its pieces of text.

    Raises:
        UnansweredError: the server says that it failed, or nothing is in it.
    """
    times, counted, reason = [], None, ""
    for at, event in events_of(heard):
        if "error" in event:
            raise UnansweredError(f"the server says: {event['error']}")
        for choice in event.get("choices", ()):
            reason = choice.get("finish_reason") or reason
            if choice.get("text"):
                times.append(at - heard.began)
        if event.get("usage"):
            counted = event["usage"]["completion_tokens"]
    if not times:
        raise UnansweredError("an answer without text")
    if counted is None:
        counted = tokens if reason == "length" else len(times)
    return Answer(heard.began, times, counted)


def sum_up(answers: Sequence[Answer], *, seconds: float, tokens: int) -> Load:
    """All answers of a level."""
    return Load(
        tokens=sum(answer.tokens for answer in answers),
        seconds=seconds,
        first=[answer.times[0] for answer in answers],
        between=[b - a for answer in answers for a, b in zip(answer.times, answer.times[1:], strict=False)],
        unfinished=sum(answer.tokens < tokens for answer in answers),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all do not exceed; NaN where there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
