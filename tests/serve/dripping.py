"""A server that hands out a text byte by byte: the pages and the guard of `linnet serve`, without a model.

A model writes what it has learned; these texts nobody would teach it. Each `data:` line goes out one byte at a time, as
the slowest of all networks would do it.
"""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from linnet.serve.app import add_page
from linnet.serve.guard import Guard
from linnet.serve.meters import Meters
from linnet.serve.settings import Settings


def dripping_app(texts: Sequence[str]) -> Any:
    """Whoever says `17` is answered texts[17]."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> Any:
        linnet = {"chat": True, "roles": ["user", "assistant"], "n_positions": 1024, "loaded": True}
        return {"data": [{"id": "drip", "linnet": linnet}]}

    @app.get("/health")
    def health() -> Any:
        return {}

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> StreamingResponse:
        said = (await request.json())["messages"][-1]["content"]
        return StreamingResponse(drops(texts[int(said)]), media_type="text/event-stream")

    add_page(app)
    return Guard(app, Settings(), meters=Meters())


async def drops(text: str) -> AsyncIterator[bytes]:
    """The bytes, one at a time, characters as they are and not as \\u escapes: so some are split."""
    pieces = [text[i : i + 40] for i in range(0, len(text), 40)]
    chunks = [{"delta": {"content": piece}, "finish_reason": None} for piece in pieces]
    lines = [json.dumps({"choices": [chunk]}, ensure_ascii=False) for chunk in chunks]
    end = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    for byte in "".join(f"data: {line}\n\n" for line in [*lines, end, "[DONE]"]).encode():
        yield bytes([byte])
        await asyncio.sleep(0)


@contextlib.contextmanager
def dripping(texts: Sequence[str]) -> Iterator[str]:
    """Its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(dripping_app(texts), log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
