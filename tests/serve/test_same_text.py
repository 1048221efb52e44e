"""The same request gives the same text: streamed or not, alone or among others, before and after a restart."""

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

import openai
import pytest

from linnet.device import cpu_has_bf16
from linnet.generate.engine import Model
from tests.serve.servers import Served, serving

PRECISIONS = ["fp32", "fp16", "int8", *(["bf16"] if cpu_has_bf16() else [])]
LETTERS = "The linnet learns its song — naïve, 日本語, 🐦🎶. "


def probe(number: int) -> dict:
    """A request with a seed; prompts of different lengths, so that chunks and rests are in it."""
    random_ = random.Random(number)
    prompt = "".join(random_.choices(LETTERS, k=random_.choice([1, 30, 130, 300])))
    return {"model": "endless", "prompt": prompt, "max_tokens": 40, "seed": number, "n": 1 + number % 2}


async def ask(client: openai.AsyncOpenAI, body: dict) -> list[str]:
    answer = await client.completions.create(**body)
    return [choice.text for choice in answer.choices]


async def ask_all(server: Served, bodies: Sequence[dict], *, clients: int) -> list[list[str]]:
    gate = asyncio.Semaphore(clients)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:

        async def one(body: dict) -> list[str]:
            async with gate:
                return await ask(client, body)

        return await asyncio.gather(*map(one, bodies))


def texts_in_all_company(models: Path, precision: str, *, others: int) -> None:
    """V9: alone, among 32 others, after many others, after a restart, with a warm prompt cache and a cold one."""
    bodies = [probe(number) for number in range(6)]
    words = (str(models / "endless"), "--precision", precision, "--queue", "1024")
    with serving(*words) as server:
        alone = asyncio.run(ask_all(server, bodies, clients=1))
        company = [probe(100 + number) for number in range(27)]
        among = asyncio.run(ask_all(server, [*company, *bodies], clients=33))
        assert among[len(company) :] == alone
        asyncio.run(ask_all(server, [probe(1000 + number) for number in range(others)], clients=32))
        assert asyncio.run(ask_all(server, bodies, clients=1)) == alone
        fingerprint = server.openai().completions.create(**bodies[0]).system_fingerprint
    with serving(*words) as server:
        mixed = list(enumerate(bodies))
        random.Random(1).shuffle(mixed)
        again = asyncio.run(ask_all(server, [body for _, body in mixed], clients=6))
        assert [texts for _, texts in sorted(zip([n for n, _ in mixed], again, strict=True))] == alone
        assert server.openai().completions.create(**bodies[0]).system_fingerprint == fingerprint


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_text_in_all_company(models: Path, precision: str) -> None:
    texts_in_all_company(models, precision, others=60)


@pytest.mark.torture
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_text_after_1_000_others(models: Path, precision: str) -> None:
    texts_in_all_company(models, precision, others=1000)


def test_the_same_text_among_others(server: Served, models: Path) -> None:
    bodies = [probe(number) for number in range(4)]
    alone = asyncio.run(ask_all(server, bodies, clients=1))
    company = [probe(50 + number) for number in range(8)]
    assert asyncio.run(ask_all(server, [*company, *bodies], clients=12))[8:] == alone


async def streamed_equals_whole(server: Served, plain: Model, *, count: int, seed: int) -> None:
    """V8: stop strings that lie across tokens and characters; the stream joined is the text that is not streamed."""
    random_ = random.Random(seed)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            length = random_.randrange(1, 5)
            body = {"model": "plain", "prompt": LETTERS[:9], "seed": number % 97, "max_tokens": 40}
            body["logit_bias"] = {
                "108": 3,
                "125": 3,
                "101": 3,
            }  # Bytes of characters, so that many are split.
            whole = texts[number % 97]
            start = random_.randrange(max(1, len(whole) - length))
            stops = [whole[start : start + length] or "x", "".join(random_.choices(LETTERS, k=2))]
            async with gate:
                answer = await client.completions.create(stop=stops, **body)
                stream = await client.completions.create(stop=stops, stream=True, **body)
                pieces = [chunk.choices[0] async for chunk in stream]
            text, reason = answer.choices[0].text, answer.choices[0].finish_reason
            assert "".join(piece.text for piece in pieces) == text
            assert pieces[-1].finish_reason == reason
            cut = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
            # The stop text that is complete first ends the text, so what is left may be longer than up to `cut`.
            assert whole.startswith(text)
            assert len(text) >= cut
            assert not any(stop in text for stop in stops)

        texts = []
        for number in range(min(97, count)):
            answer = await client.completions.create(
                model="plain",
                prompt=LETTERS[:9],
                seed=number,
                max_tokens=40,
                logit_bias={"108": 3, "125": 3, "101": 3},
            )
            texts.append(answer.choices[0].text)
        await asyncio.gather(*(one(number) for number in range(count)))


def test_streamed_is_what_is_not_streamed(server: Served, plain: Model) -> None:
    asyncio.run(streamed_equals_whole(server, plain, count=60, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_streamed_is_what_is_not_streamed_500_times(server: Served, plain: Model) -> None:
    asyncio.run(streamed_equals_whole(server, plain, count=500, seed=2))


@pytest.mark.torture
def test_streamed_is_what_is_not_streamed_10_000_times(server: Served, plain: Model) -> None:
    asyncio.run(streamed_equals_whole(server, plain, count=10_000, seed=3))


def test_done_comes_last_and_chunks_are_whole_characters(server: Served) -> None:
    body = {"model": "plain", "prompt": "日", "max_tokens": 60, "stream": True, "seed": 3}
    lines = [line for line in server.post("/v1/completions", body).text.split("\n\n") if line]
    assert lines.count("data: [DONE]") == 1
    assert lines[-1] == "data: [DONE]"
    whole = server.post("/v1/completions", body | {"stream": False}).json()["choices"][0]["text"]
    pieces = [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]]
    assert "".join(pieces) == whole
