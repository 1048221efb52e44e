"""Who is let in: keys, names of the server, pages elsewhere. Real sockets, since clients mend what they send."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.servers import ROOT, Served, serving

KEY = "sk-linnet-Zeisig_7"
BODY = b'{"model":"plain","prompt":"Hi","max_tokens":1}'
ROUTES = {
    "GET /health": True,
    "GET /v1/models": False,
    "GET /v1/models/plain": False,
    "POST /v1/completions": False,
    "POST /v1/chat/completions": False,
    "GET /metrics": False,
    "GET /openapi.json": False,
    "GET /docs": False,
    "GET /nothing": False,
    "DELETE /v1/models": False,
    "OPTIONS /v1/models": False,
    "HEAD /v1/models": False,
}
TRICKS = [
    *("//health", "/health/", "/health/../v1/models", "/static/../v1/models", "/static/%2e%2e/v1/models"),
    *("/health%2f..%2fv1/models", "/%2fhealth", "/health%00", "/./v1/models", "/v1//models", "/V1/models"),
    *("/static/..%2f..%2f..%2fetc/passwd", "/static/%2e%2e%2f%2e%2e%2fserver.py", "/static//etc/passwd"),
    *("/v1/models;/health", "/v1/models?x=/health", "/v1/models#/health", "http://localhost/v1/models"),
    *("/static/../../guard.py", "/static/..\\..\\guard.py", "/\\v1\\models", "/v1/models%20"),
]


@pytest.fixture(scope="module")
def guarded(models: Path) -> Iterator[Served]:
    words = (str(models / "plain"), "--precision", "fp32")
    more = ("--allow-host", "birds.example", "--allow-origin", "https://page.example")
    with serving(*words, *more, env={"LINNET_API_KEY": KEY}, key=KEY) as served:
        yield served
    assert KEY not in served.said
    assert "Hi" not in served.said


def ask(
    server: Served, line: str, *headers: str, body: bytes = b"", host: str = "localhost"
) -> tuple[int, str]:
    """Status and the rest of an answer, to a request as it stands."""
    lines = [f"{line} HTTP/1.1", *([f"Host: {host}"] if host else []), "Connection: close", *headers]
    if body:
        lines += [f"Content-Length: {len(body)}"]
        if not any(header.lower().startswith("content-type") for header in headers):
            lines += ["Content-Type: application/json"]
    with server.connect() as client:
        client.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data, "no answer"
    return int(data.split(b" ", 2)[1]), data.decode("latin-1")


def body_for(line: str) -> bytes:
    return BODY if line.startswith("POST") else b""


@pytest.mark.parametrize("route", ROUTES)
def test_each_route_with_no_key_a_wrong_one_and_the_right_one(route: str, guarded: Served) -> None:
    wrong = [
        (),
        ("Authorization: Bearer wrong",),
        (f"Authorization: Bearer {KEY}x",),
        (f"Authorization: Bearer {KEY[:-1]}",),
        (f"Authorization: Basic {KEY}",),
        (f"Authorization: {KEY}",),
        ("Authorization: Bearer ",),
        ("Authorization: Bearer ä",),
        (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"),
        (f"X-Api-Key: {KEY}",),
    ]
    for headers in wrong:
        status, text = ask(guarded, route, *headers, body=body_for(route))
        assert status == (200 if ROUTES[route] else 401), (headers, text)
        if status == 401 and not route.startswith("HEAD"):
            assert '"invalid_api_key"' in text
            assert KEY not in text
    status, _ = ask(guarded, route, f"Authorization: Bearer {KEY}", body=body_for(route))
    assert status not in (401, 403)


def test_a_key_in_the_address_is_none(guarded: Served) -> None:
    assert ask(guarded, f"GET /v1/models?api_key={KEY}")[0] == 401


@pytest.mark.parametrize("path", TRICKS)
def test_tricks_with_paths(path: str, guarded: Served) -> None:
    """Not let in, or let in to nothing: no model, no file of ours or of the machine."""
    status, text = ask(guarded, f"GET {path}")
    assert status in (400, 401, 403, 404, 405), text
    assert '"object"' not in text
    assert "root:" not in text
    assert "import " not in text


HOSTS = {
    **dict.fromkeys(
        ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "localhost:8000", "127.0.0.1:1", "birds.example"],
        200,
    ),
    **dict.fromkeys(["birds.example:443", "Birds.Example"], 200),
    **dict.fromkeys(
        [
            *(
                "evil.example",
                "localhost.evil.example",
                "evil.example:8000",
                "127.0.0.1.nip.io",
                "localhost.",
            ),
            *(
                "127.0.0.2",
                "127.1",
                "0.0.0.0",
                "2130706433",
                "0x7f000001",
                "017700000001",
                "127.0.0.1.",
                "::1",
            ),
            *(
                "[::ffff:127.0.0.1]",
                "[::]",
                "birds.example.evil",
                "xbirds.example",
                "localhost-",
                "local host",
            ),
            *(
                "localhost:",
                "localhost:x",
                "localhost:8000:1",
                "localhost/",
                "localhost@evil",
                "evil@localhost",
            ),
            *("localhost#", "localhost?", "localhost,evil.example", "lоcalhost".encode().decode("latin-1")),
            *("", "*", "null"),
        ],
        0,
    ),
}
ORIGINS = {
    "": True,
    "http://HOST": True,
    "https://HOST": True,
    "https://page.example": True,
    "http://page.example": False,
    "https://page.example:444": False,
    "https://evil.example": False,
    "null": False,
    "http://HOST.evil.example": False,
    "file://": False,
    "http://localhost:9999": False,
}


def test_hosts_and_origins_are_those_of_the_list(guarded: Served) -> None:
    assert len(HOSTS) >= 40
    assert len(ORIGINS) >= 10
    for (host, allowed), (origin, same) in itertools.product(HOSTS.items(), ORIGINS.items()):
        headers = [f"Authorization: Bearer {KEY}"]
        if origin:
            headers.append("Origin: " + origin.replace("HOST", host))
        lines = [f"Host: {host}", *headers] if host else headers
        status, text = ask(guarded, "POST /v1/completions", *lines, body=BODY, host="")
        if allowed and same:
            assert status == 200, (host, origin, text)
        else:
            assert status in (400, 403), (host, origin, text)
        wanted = origin == "https://page.example" and status == 200
        assert ("access-control-allow-origin: https://page.example" in text.lower()) == wanted
        assert "access-control-allow-origin: *" not in text.lower()


def test_two_hosts_or_none_are_refused(guarded: Served) -> None:
    key = f"Authorization: Bearer {KEY}"
    assert ask(guarded, "GET /v1/models", key, "Host: evil.example")[0] == 400
    assert ask(guarded, "GET /v1/models", key, host="")[0] == 400


def test_a_page_elsewhere_cannot_ask_as_text(server: Served) -> None:
    """Without a key: what a form or a script of another page can send without being asked first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        status, text = ask(
            server,
            "POST /v1/completions",
            f"Content-Type: {kind}",
            "Origin: https://evil.example",
            body=BODY,
        )
        assert (status, '"origin_not_allowed"' in text) == (403, True)
    status, _ = ask(server, "POST /v1/completions", "Content-Type: text/plain", body=BODY)
    assert status == 400


def test_a_browser_may_ask_beforehand(guarded: Served) -> None:
    asks = (
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization,content-type",
    )
    status, text = ask(guarded, "OPTIONS /v1/completions", "Origin: https://page.example", *asks)
    assert status == 200
    assert "access-control-allow-origin: https://page.example" in text.lower()
    assert ask(guarded, "OPTIONS /v1/completions", "Origin: https://evil.example", *asks)[0] == 403
    assert ask(guarded, "POST /v1/completions", "Origin: https://page.example", body=BODY)[0] == 401


@pytest.mark.parametrize("line", ["GET /health", "GET /v1/models", "GET /nothing", "POST /v1/completions"])
def test_every_answer_keeps_pages_in_check(line: str, guarded: Served) -> None:
    _, text = ask(guarded, line, body=body_for(line))
    text = text.lower()
    assert "content-security-policy: default-src 'none'; script-src 'self'" in text
    assert "frame-ancestors 'none'" in text
    assert "x-content-type-options: nosniff" in text
    assert "referrer-policy: no-referrer" in text
    assert "\nserver:" not in text


REFUSED = {
    "no key": (["--host", "0.0.0.0"], "--api-key"),
    "no key, all of IPv6": (["--host", "::"], "--api-key"),
    "no key, an address": (["--host", "192.0.2.1"], "--api-key"),
    "a key with a space": (["--api-key", "a b"], "API key"),
    "an origin without scheme": (["--allow-origin", "page.example"], "--allow-origin"),
    "any origin": (["--allow-origin", "*"], "--allow-origin"),
    "a host with a path": (["--allow-host", "a/b"], "--allow-host"),
    "queue": (["--queue", "0"], "--queue"),
    "together": (["--together", "0"], "--together"),
    "precision": (["--precision", "fp64"], "--precision"),
    "idle": (["--idle-minutes", "0"], "--idle-minutes"),
    "runs": (["--runs", "nowhere"], "--runs"),
    "port": (["--port", "70000"], "--port"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_does_not_start(name: str, models: Path) -> None:
    words, says = REFUSED[name]
    command = [sys.executable, "-m", "linnet", "serve", str(models / "plain"), *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin"}
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_pages_are_open_and_what_they_show_is_not(models: Path, tmp_path: Path) -> None:
    words = (str(models / "talk"), "--precision", "fp32", "--runs", str(tmp_path), "--api-key", KEY)
    with serving(*words, key=KEY) as served:
        for path in ("/", "/static/index.html", "/runs", "/runs/plotly.js", "/static/page.json"):
            status, text = ask(served, f"GET {path}")
            assert status == 200, path
            assert text.lower().count("content-security-policy:") == 1
        for path in ("/runs/data", "/runs/data/mine"):
            assert ask(served, f"GET {path}")[0] == 401
        assert ask(served, "GET /runs/data", f"Authorization: Bearer {KEY}")[0] == 200
        assert KEY not in served.said


def test_a_page_never_runs_scripts_of_another_version(server: Served) -> None:
    with server.http() as client:
        for path in ("/", "/static/chat.js", "/static/style.css"):
            answer = client.get(path)
            assert answer.headers["cache-control"] == "no-cache"
            again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert again.status_code == (200 if path == "/" else 304)
            assert again.headers["cache-control"] == "no-cache"
