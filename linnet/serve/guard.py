"""Who may ask: plain ASGI around the whole application, deny by default.

Why    A server on 127.0.0.1 is reached by every page that a browser on this machine opens: such a page may send
       requests there, and with a name of its own that suddenly means 127.0.0.1 (DNS rebinding) it may read the
       answers, too.
How    In this order: the Host must be a name of this server; an Origin must be this server's own or be allowed; with
       a key, everything but /health and the page's own files wants it. Decided on `scope["path"]`, which is what the
       router sees. Every answer gets the headers that keep a page from running or fetching what is not ours.
"""

import hmac
import re
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linnet.serve.meters import Meters
from linnet.serve.refusals import Refusal
from linnet.serve.settings import LOOPBACK, Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
ANY_ADDRESS = ("", "0.0.0.0", "::")


class Guard:
    """The outermost application."""

    def __init__(self, app: ASGIApp, settings: Settings, *, meters: Meters) -> None:
        self.app, self.meters = app, meters
        self.key = settings.api_key.encode()
        named = [*LOOPBACK, *settings.allow_hosts]
        self.any_address = settings.host in ANY_ADDRESS
        self.hosts = {host.lower() for host in (named if self.any_address else [*named, settings.host])}
        self.origins = {origin.lower() for origin in settings.allow_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                own = {
                    name for name, _ in headers
                }  # The view of runs has a policy of its own, for its curves.
                message["headers"] = headers + [header for header in SAFE_HEADERS if header[0] not in own]
                self.meters.count(scope["path"], message["status"])
            await send(message)

        try:
            self.check(scope)
        except Refusal as refusal:
            await refusal(scope, receive, send_safely)
        else:
            await self.app(scope, receive, send_safely)

    def check(self, scope: Scope) -> None:
        """A Refusal for a request that is not let in."""
        host = self._host(scope)
        preflight = (
            self._origin(scope, host) and scope["method"] == "OPTIONS"
        )  # A browser asks without a key.
        if self.key and not preflight and not is_open(scope["path"]):
            self._key(scope)

    def _host(self, scope: Scope) -> str:
        hosts = _values(scope, b"host")
        match = HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if match is None:
            raise Refusal(400, "The Host header is missing, malformed or there twice.", code="invalid_host")
        name = match[1].strip("[]")
        reached = scope["server"][0] if self.any_address and scope.get("server") else ""
        if name not in self.hosts and name != reached:
            raise Refusal(
                403,
                f"This server is not known as {name}; whoever runs it can add --allow-host {name}.",
                code="host_not_allowed",
            )
        return hosts[0].lower()

    def _origin(self, scope: Scope, host: str) -> bool:
        """Whether it comes from a page elsewhere that may ask; a Refusal where it may not."""
        origins = [origin.lower() for origin in _values(scope, b"origin")]
        if not origins:
            return False
        if len(origins) == 1 and origins[0] in self.origins:
            return True
        if len(origins) > 1 or not _same(origins[0], host):
            raise Refusal(
                403,
                "Pages of this origin may not ask here; whoever runs the server can add --allow-origin.",
                code="origin_not_allowed",
            )
        return False

    def _key(self, scope: Scope) -> None:
        given = _values(scope, b"authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        # Compared as bytes and as a whole, so that the time says nothing of where they differ.
        right = hmac.compare_digest(key.strip().encode(), self.key)
        if scheme.lower() != "bearer" or not right:
            raise Refusal(
                401,
                "The API key is wrong."
                if key
                else "This server wants an API key: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def is_open(path: str) -> bool:
    """Paths that want no key: whether it lives, and the pages' own files, in which nothing of a run is."""
    return path in ("/", "/health", "/runs", "/runs/plotly.js") or path.startswith("/static/")


def _same(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this server."""
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and origin == f"{parts.scheme}://{host}"
    except ValueError:
        return False


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
