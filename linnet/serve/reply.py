"""The life of one request for text, from its admission to the last byte of its answer.

Why: a client may leave at any time, also before the first token and while a prompt is read; then nothing may go on. So
admission, work and leaving lie in one function, whose `finally` runs whatever happens.
How: `Reply` is an ASGI application, as a response is. A second task waits for the client to leave. All else comes as
events of the `Job`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import orjson
from starlette.types import Receive, Scope, Send

from linnet.serve.answers import ChatForm, CompletionForm, Form, Json
from linnet.serve.bodies import ChatBody, CompletionBody
from linnet.serve.laying import laid_out
from linnet.serve.meters import Meters
from linnet.serve.refusals import Refusal, refusal_of
from linnet.serve.scheduler import Event, Gone, Job, Laid, Scheduler, Written
from linnet.serve.shelf import Place

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """`seconds`: how long an answer may take; then it ends where it is."""

    def __init__(
        self,
        body: ChatBody | CompletionBody,
        place: Place,
        *,
        scheduler: Scheduler,
        meters: Meters,
        seconds: float,
    ) -> None:
        self.body, self.place, self.scheduler, self.meters, self.seconds = (
            body,
            place,
            scheduler,
            meters,
            seconds,
        )
        prompts = len(body.prompts) if isinstance(body, CompletionBody) else 1
        kind = ChatForm if isinstance(body, ChatBody) else CompletionForm
        asks = body.logprobs if isinstance(body, ChatBody) else body.logprobs is not None
        self.form: Form = kind(model=place.name, count=body.n * prompts, logprobs=asks)
        self.job = Job(body.n * prompts)
        self._loop: asyncio.AbstractEventLoop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.scheduler.admit(self.job)
        except Refusal as refusal:
            await refusal(scope, receive, send)
            return
        self._loop = asyncio.get_running_loop()
        watch = asyncio.create_task(self._watch(receive))
        alarm = self._loop.call_later(self.seconds, self.scheduler.cut, self.job)
        try:
            with self.place.used():
                self._loop.run_in_executor(self.place.thread, self._lay_out)
                await self._answer(scope, receive, send)
        except Gone:
            self.meters.left.inc()
        finally:
            alarm.cancel()
            watch.cancel()
            self.scheduler.leave(self.job)
            self.meters.seconds.observe(time.monotonic() - self.job.arrived)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.scheduler.leave(self.job)

    def _lay_out(self) -> None:
        """In the thread of the place."""
        if self.job.gone or self.job.cut:
            return
        tell = self._loop.call_soon_threadsafe
        try:
            laid = laid_out(self.body, self.place.hold(), self.job)
        except Exception as error:
            param = "messages" if isinstance(self.body, ChatBody) else "prompt"
            tell(self.job.events.put_nowait, refusal_of(error, param=param))
            return
        tell(self.job.events.put_nowait, laid)
        self.scheduler.submit(self.job)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            laid = await self._event()
            assert isinstance(laid, Laid)
            tokenizer, fingerprint = laid.held.model.tokenizer, laid.held.fingerprint
            self.form.begin(tokenizer, prompt_tokens=laid.prompt_tokens, fingerprint=fingerprint)
            self.meters.read.inc(laid.prompt_tokens)
            while not (self.body.stream or self.form.done):
                self._add(await self._event())
        except Refusal as refusal:
            await refusal(scope, receive, send)
            return
        if self.body.stream:
            await self._stream(send)
            return
        body = orjson.dumps(self.form.whole())
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        """Server-sent events: a line of JSON for each piece, all that is there at once in one write."""
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        options = self.body.stream_options
        wants_usage = options is not None and options.include_usage
        chunks = self.form.first_chunks()
        while True:
            if wants_usage:
                chunks = [{**chunk, "usage": None} for chunk in chunks]
            if self.form.done:
                break
            await self._send(send, chunks)
            try:
                written = [self._add(await self._event())]
                while not self.job.events.empty():
                    written.append(self._add(await self._event()))
            except Refusal as refusal:
                await self._send(send, [refusal.body()], last=True)
                return
            chunks = [chunk for one in written for chunk in self.form.chunks(one)]
        end = [self.form.last_chunk()] if wants_usage else []
        await self._send(send, [*chunks, *end, None], last=True)

    async def _send(self, send: Send, chunks: Sequence[Json | None], *, last: bool = False) -> None:
        """None: the mark of the end."""
        lines = [b"[DONE]" if chunk is None else orjson.dumps(chunk) for chunk in chunks]
        body = b"".join(b"data: " + line + b"\n\n" for line in lines)
        if body or last:
            await send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _event(self) -> Event:
        """The next one; an exception among them is raised."""
        event = await self.job.events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def _add(self, event: Event) -> Written:
        assert isinstance(event, Written)
        self.form.add(event)
        return event
