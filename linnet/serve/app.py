"""The application: which path does what.

Why FastAPI: the requests are described by types, and /openapi.json says so to other programs.
How: the routes validate and hand out a `Reply`; around them lie, from the outside in, `Guard` (who may ask), CORS
for pages elsewhere where some are allowed, and `Bodies` (how much). All three are plain ASGI: the base class of
Starlette's middleware would hide that a client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

import linnet
from linnet.serve.bodies import ChatBody, CompletionBody
from linnet.serve.guard import Guard
from linnet.serve.limits import Bodies
from linnet.serve.meters import Meters
from linnet.serve.refusals import ERROR_SCHEMA, Refusal, of_http, of_validation, refusal_of
from linnet.serve.reply import Reply
from linnet.serve.scheduler import Scheduler
from linnet.serve.settings import Settings
from linnet.serve.shelf import Shelf

STATIC = Path(__file__).parent / "static"
ASK_AGAIN = {"Cache-Control": "no-cache"}  # Or a page would run with scripts of the version before.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR_SCHEMA}}}
    for status, text in {
        400: "Something in it cannot be done; `param` says what.",
        401: "No key, or a wrong one.",
        403: "From a place that may not ask.",
        404: "No such model.",
        413: "Too large.",
        429: "Too many wait; see Retry-After.",
        503: "Stopping, or out of memory.",
    }.items()
}


class StrictRequest(Request):
    """JSON as the standard says: no NaN, no lone surrogates, no more than 1,024 levels."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await answer(StrictRequest(request.scope, request.receive))

        return strictly


class Service:
    """What the routes need; `scheduler` is there as long as the server runs."""

    def __init__(self, settings: Settings, shelf: Shelf) -> None:
        self.settings, self.shelf, self.meters = settings, shelf, Meters()
        self.scheduler: Scheduler

    @contextlib.asynccontextmanager
    async def running(self, app: object) -> AsyncIterator[None]:
        """From the start of the server to its end."""
        settings = self.settings
        self.scheduler = Scheduler(together=settings.together, queue=settings.queue, meters=self.meters)
        places = self.shelf.places.values()
        self.meters.watch(models_loaded=lambda: sum(place.held is not None for place in places))
        idle = asyncio.create_task(self.shelf.give_back_idle(settings.idle_minutes * 60))
        try:
            yield
        finally:
            idle.cancel()
            await asyncio.to_thread(self.scheduler.close)

    def reply(self, body: ChatBody | CompletionBody) -> Reply:
        """What answers; a Refusal where the model is not there or does not converse."""
        place = self.shelf.find(body.model)
        if isinstance(body, ChatBody) and place.template is None:
            raise Refusal(
                400,
                f"{place.name} was not trained on turns: use /v1/completions, which goes on from a prompt.",
                param="model",
                code="no_chat_template",
            )
        return Reply(
            body,
            place,
            scheduler=self.scheduler,
            meters=self.meters,
            seconds=self.settings.seconds_to_answer,
        )


def build(service: Service) -> ASGIApp:
    """The application with all that lies around it."""
    settings = service.settings
    app = FastAPI(
        title="Linnet",
        version=linnet.__version__,
        lifespan=service.running,
        docs_url=None,  # These pages fetch their scripts from elsewhere.
        redoc_url=None,
    )
    app.include_router(routes(service))
    if settings.runs is not None:
        from linnet.serve.runs import runs_router

        app.include_router(runs_router(settings.runs))
    add_page(app)
    add_errors(app)
    inner: ASGIApp = Bodies(app, most=settings.most_body)
    if settings.allow_origins:
        inner = CORSMiddleware(
            inner, allow_origins=settings.allow_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return Guard(inner, settings, meters=service.meters)


def routes(service: Service) -> APIRouter:
    """OpenAI's API, and what keeps an eye on it."""
    router = APIRouter(route_class=StrictRoute, responses=ERRORS)
    text: dict[int | str, dict[str, Any]] = {
        200: {"description": "The text; with `stream` as server-sent events."}
    }

    @router.post("/v1/completions", response_class=Response, responses=text)
    async def completions(body: CompletionBody) -> Any:
        """Go on from a prompt."""
        return Streamed(service.reply(body))

    @router.post("/v1/chat/completions", response_class=Response, responses=text)
    async def chat_completions(body: ChatBody) -> Any:
        """Answer a conversation."""
        return Streamed(service.reply(body))

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """All models."""
        return {"object": "list", "data": [place.entry() for place in service.shelf.places.values()]}

    @router.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        """One of them."""
        return service.shelf.find(model).entry()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server lives."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.meters.text(), media_type=CONTENT_TYPE_LATEST)

    return router


class Streamed(Response):
    """A `Reply` in the form that FastAPI passes on as it is."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.reply(scope, receive, send)


class FreshFiles(StaticFiles):
    """Static files of which a browser asks each time whether they are still the same."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(ASK_AGAIN)
        return response


def add_page(app: FastAPI) -> None:
    """The page in the browser."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=ASK_AGAIN)

    app.mount("/static", FreshFiles(directory=STATIC))


def add_errors(app: FastAPI) -> None:
    """All errors in one form."""

    async def on_refusal(request: Request, error: Any) -> Any:
        return Said(error)

    async def on_http(request: Request, error: Any) -> Any:
        path, method = request.scope["path"], request.method
        return Said(of_http(error.status_code, path=path, method=method, headers=error.headers))

    async def on_validation(request: Request, error: Any) -> Any:
        return Said(of_validation(error.errors()))

    async def on_bug(request: Request, error: Exception) -> Any:
        return Said(refusal_of(error))

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_bug)


class Said(Response):
    """A `Refusal` in the form that FastAPI passes on as it is."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.refusal = refusal

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.refusal(scope, receive, send)
