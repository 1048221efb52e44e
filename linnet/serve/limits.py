"""How much may arrive, and in what time.

Why: uvicorn waits for ever for a request that comes a byte a second and for a client that never reads, and keeps a body
of any size; a few hundred such clients keep others out.
How: `Bodies` reads a body as a whole before the application sees it, up to a size. `TimedConnection` is uvicorn's own
protocol with two alarms: until a request is there as a whole, and until a client takes what was written for it.
"""

from asyncio import TimerHandle, Transport

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from linnet.serve.refusals import Refusal

SECONDS_TO_TAKE = 30.0


class Bodies:
    """`most`: bytes."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        body = bytearray()
        more = int(length) <= self.most
        too_large = not more
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            too_large = len(body) > self.most
            more = message.get("more_body", False) and not too_large
        if too_large:  # The connection stays open, and what still comes is read and forgotten.
            refusal = Refusal(413, f"The body has more than {self.most:,} bytes.", code="body_too_large")
            await refusal(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        del body

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


def timed_connection(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol for HTTP, which waits no longer than `seconds` for the whole of a request."""

    class TimedConnection(H11Protocol):
        _arriving: TimerHandle | None = None
        _taking: TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._arriving = self.loop.call_later(seconds, transport.abort)

        def handle_events(self) -> None:
            super().handle_events()
            state = self.conn.their_state
            begun = state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))
            if begun and self._arriving is None:
                self._arriving = self.loop.call_later(seconds, self.transport.abort)
            elif state not in (h11.SEND_BODY, h11.IDLE):
                _stop(self._arriving)
                self._arriving = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._taking = self._taking or self.loop.call_later(SECONDS_TO_TAKE, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _stop(self._taking)
            self._taking = None

        def connection_lost(self, exc: Exception | None) -> None:
            _stop(self._arriving)
            _stop(self._taking)
            super().connection_lost(exc)

    return TimedConnection


def _stop(timer: TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
