"""A hub on this machine: enough of the protocol for the real huggingface_hub, datasets and transformers.

What   `with LoopbackHub(root) as hub:` serves models root/OWNER/NAME (or root/NAME) and data sets
       root/datasets/OWNER/NAME at `hub.endpoint`; set HF_ENDPOINT to it. A branch other than main lies beside, in
       NAME@BRANCH with "-" for "/": scientific_papers@refs-convert-parquet.
       `run_python` runs code or a command with the hub, in a process of its own.
How    What was asked for is in `hub.requests`, as "METHOD path". Large files (Parquet, weights, archives) come from a
       second port, as the real hub sends them from a storage host: by a redirect with the headers of git LFS.
       `hub.fail(...)` makes the next requests fail; `gated` and `moved` name repositories that are so.
       What is uploaded is taken by loopback_uploads.py.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.loopback_uploads import HungUp, Uploads, git_id, sha256

GUARD = Path(__file__).parent / "guard"
LARGE = re.compile(r".*\.(parquet|safetensors|bin|gz|zst)")
Failure = int | Literal["cut"]
Headers = dict[str, str]


class LoopbackHub:
    """The server.

    Args:
        gated: repository -> the token that opens it; its list of files is public, as on the real hub.
        moved: old name -> new name; the hub redirects.
        page: entries in one answer about a folder; a link leads to the next.
        writers: token -> the owner whose repositories it may make and write.
        part_size: bytes of a part, where large files are to be sent in parts; 0: in one piece.

    Attributes:
        requests: "METHOD path" of every request, to both ports.
        sent_bytes: of large files that have arrived, also in requests that were cut.
        stored: the sha256 of each large file that was stored, in their order; sent twice, it stands there twice.
        commits: the names of all files after each commit.
        private: repositories that were made so.
        events: how many events of uploads there were (see loopback_uploads).
    """

    def __init__(
        self,
        root: Path,
        *,
        gated: Mapping[str, str] | None = None,
        moved: Mapping[str, str] | None = None,
        page: int = 1000,
        writers: Mapping[str, str] | None = None,
        part_size: int = 0,
    ) -> None:
        self.root, self.gated, self.moved, self.page = root, dict(gated or {}), dict(moved or {}), page
        self.writers, self.part_size = dict(writers or {}), part_size
        self.requests: list[str] = []
        self.sent_bytes = self.events = 0
        self.stored: list[str] = []
        self.commits: list[list[str]] = []
        self.private: set[str] = set()
        self._strike: tuple[int, Callable[[], None]] | None = None
        self._failures: list[tuple[str, Failure]] = []
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, self)) for _ in range(2)]
        self._threads = [
            threading.Thread(target=server.serve_forever, daemon=True) for server in self._servers
        ]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def fail(self, part: str, failure: Failure, *, times: int = 1) -> None:
        """Let the next `times` requests with `part` in their path fail: a status, or cut in the middle of the file."""
        self._failures += [(part, failure)] * times

    def strike(self, at: int, action: Callable[[], None]) -> None:
        """At the `at`-th event of uploads from now on, call `action` and hang up."""
        self.events, self._strike = 0, (at, action)

    def pass_event(self) -> None:
        """An event of an upload; raises HungUp where the strike is."""
        self.events += 1
        if self._strike is not None and self.events == self._strike[0]:
            self._strike[1]()
            self._strike = None
            raise HungUp

    @staticmethod
    def is_large(path: str) -> bool:
        """Whether the file is kept apart, under its hash."""
        return LARGE.fullmatch(path) is not None

    def take_failure(self, path: str, command: str) -> Failure | None:
        for number, (part, failure) in enumerate(self._failures):
            if part in path and (failure != "cut" or command == "GET"):
                del self._failures[number]
                return failure
        return None

    def folder(self, kind: str, name: str, revision: str) -> Path | None:
        """The folder of one revision: a branch or a commit."""
        main = self.root / ("datasets" if kind == "datasets" else "") / name
        if revision == "main":
            return main if main.is_dir() else None
        branch = main.with_name(f"{main.name}@{revision.replace('/', '-')}")
        if branch.is_dir():
            return branch
        folders = [main, *main.parent.glob(f"{main.name}@*")]
        return next((one for one in folders if one.is_dir() and commit_of(one) == revision), None)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class Answer(Uploads, BaseHTTPRequestHandler):
    """One request, and what the hub says to it."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: LoopbackHub, *args: Any) -> None:
        self.hub, self.cut = hub, False
        super().__init__(*args)

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        failure = self.hub.take_failure(self.path, self.command)
        self.cut = failure == "cut"
        if isinstance(failure, int):
            if self.command in ("POST", "PUT"):
                self.read_body()
            self.answer(failure, b'{"error": "as the test wants it"}')
        elif self.command in ("POST", "PUT") and self.answer_upload(parts):
            pass
        elif parts[0] == "storage":
            self.answer_range(self.hub.root.joinpath(*parts[1:]), {})
        elif parts[0] == "api" and parts[1] in ("models", "datasets"):
            self.answer_api(parts[1], parts[2:])
        elif "resolve" in parts:
            kind = "datasets" if parts[0] == "datasets" else "models"
            at = parts.index("resolve")
            name = "/".join(parts[1:at] if kind == "datasets" else parts[:at])
            self.answer_file(kind, name, parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self.answer(404, b"{}")

    do_HEAD = do_GET
    do_POST = do_GET
    do_PUT = do_GET

    # -- about a repository ------------------------------------------------------------------------------------------

    def answer_api(self, kind: str, parts: list[str]) -> None:
        """/api/datasets/NAME[/revision/REV], /tree/REV[/FOLDER], /paths-info/REV, /refs, /auth-check; models too."""
        words = ("revision", "tree", "paths-info", "refs", "auth-check")
        at = next((parts.index(word) for word in words if word in parts), len(parts))
        name, word, rest = "/".join(parts[:at]), "".join(parts[at : at + 1]), parts[at + 1 :]
        if self.redirected(name) or (folder := self.found(kind, name, rest[0] if rest else "main")) is None:
            return
        if word == "auth-check":
            if not self.refused(name):
                self.answer(200, b"OK")
        elif word == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit_of(folder)}
            self.answer(200, json.dumps({"branches": [main], "converts": [], "tags": []}).encode())
        elif word == "tree":
            self.answer_tree(folder, "/".join(rest[1:]))
        elif word == "paths-info":
            body = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
            entries = {entry["path"]: entry for entry in entries_of(folder)}
            found = [entries[path] for path in body.get("paths", []) if path in entries]
            self.answer(200, json.dumps(found).encode())
        else:
            sizes = self.query.get("blobs", "").lower() in ("true", "1")
            files = [entry for entry in entries_of(folder) if entry["type"] == "file"]
            info = {
                "_id": "1",
                "id": name,
                "sha": commit_of(folder),
                "private": name in self.hub.private,
                "gated": "auto" if name in self.hub.gated else False,
                "tags": [],
                "siblings": [
                    {"rfilename": entry["path"]} | ({"size": entry["size"]} if sizes else {})
                    for entry in files
                ],
            }
            self.answer(200, json.dumps(info).encode())

    def answer_tree(self, folder: Path, below: str) -> None:
        """The entries of a folder, `hub.page` at a time."""
        if below and not (folder / below).is_dir():
            self.answer(404, b'{"error": "Entry not found"}', {"X-Error-Code": "EntryNotFound"})
            return
        entries = [
            entry for entry in entries_of(folder) if not below or entry["path"].startswith(f"{below}/")
        ]
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            depth = below.count("/") + 1 if below else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        start = int(self.query.get("cursor", 0))
        end, headers = start + self.hub.page, {}
        if end < len(entries):
            query = "&".join(f"{key}={quote(value)}" for key, value in self.query.items() if key != "cursor")
            link = f"{self.hub.endpoint}{urlsplit(self.path).path}?{query}&cursor={end}"
            headers["Link"] = f'<{link}>; rel="next"'
        self.answer(200, json.dumps(entries[start:end]).encode(), headers)

    def redirected(self, name: str) -> bool:
        """Whether the repository has another name now; then the answer is a redirect."""
        if name not in self.hub.moved:
            return False
        self.answer(307, b"", {"Location": self.path.replace(name, self.hub.moved[name], 1)})
        return True

    def refused(self, name: str) -> bool:
        """Whether the repository is gated and the token not the one that opens it; then that is the answer."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.gated.get(name, token) == token:
            return False
        self.answer(403 if token else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        return True

    def found(self, kind: str, name: str, revision: str) -> Path | None:
        """The revision's folder; None where the answer is already that it is missing."""
        folder = self.hub.folder(kind, name, revision)
        if folder is not None:
            return folder
        if self.hub.folder(kind, name, "main") is None:
            # The real hub does not tell private from missing. It sends no code; the client guesses it over https only.
            message = {"X-Error-Message": "Invalid username or password.", "X-Error-Code": "RepoNotFound"}
            self.answer(401, b"{}", message)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return None

    # -- files -------------------------------------------------------------------------------------------------------

    def answer_file(self, kind: str, name: str, revision: str, file: str) -> None:
        if self.redirected(name) or (folder := self.found(kind, name, revision)) is None:
            return
        path, commit = folder / file, {"X-Repo-Commit": commit_of(folder)}
        if self.refused(name):
            return
        if not path.is_file():
            self.answer(
                404, b"", commit | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            )
        elif LARGE.fullmatch(path.name):
            place = quote(path.relative_to(self.hub.root).as_posix(), safe="/")
            linked = {
                "X-Linked-ETag": f'"{sha256(path.read_bytes())}"',
                "X-Linked-Size": str(path.stat().st_size),
            }
            self.answer(302, b"", commit | linked | {"Location": f"{self.hub.storage}/storage/{place}"})
        else:
            self.answer_range(path, commit | {"ETag": f'"{git_id(path.read_bytes())}"'})

    def answer_range(self, path: Path, headers: Headers) -> None:
        """The file, or the bytes of it that the request names."""
        body, headers = path.read_bytes(), headers | {"Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self.answer(200, body, headers)
            return
        start, size = int(wanted[1]), len(body)
        stop = min(int(wanted[2]) + 1 if wanted[2] else size, size)
        if start >= size:
            self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        self.answer(206, body[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def answer(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if self.cut else body)
        self.close_connection |= self.cut

    def log_message(self, format: str, *args: object) -> None:
        pass


def entries_of(folder: Path) -> list[dict[str, Any]]:
    """All files and folders below `folder`, as the hub describes them."""
    entries: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            entries.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
            continue
        size = path.stat().st_size
        entry = {"type": "file", "path": name, "size": size, "oid": git_id(path.read_bytes())}
        if LARGE.fullmatch(path.name):
            entry["lfs"] = {"oid": sha256(path.read_bytes()), "size": size, "pointerSize": 130}
        entries.append(entry)
    return entries


def commit_of(folder: Path) -> str:
    """A commit id that stays the same while the folder's content does."""
    listing = [folder.name, *(f"{entry['path']} {entry['oid']}" for entry in entries_of(folder))]
    return hashlib.sha1("\n".join(listing).encode()).hexdigest()


def run_python(
    code: str, *words: str, home: Path, endpoint: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new process with HF_HOME and HF_ENDPOINT set, as the clients read them when they are imported.

    The working folder is `home`. A try to reach any other host than this machine fails, and fails the test.
    """
    stray = home / "stray.txt"
    settings = {
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "LINNET_TEST_STRAY": str(stray),
        "PYTHONPATH": os.pathsep.join([str(GUARD), str(GUARD.parent.parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=home,
        env=os.environ | settings | env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert not stray.exists(), f"other hosts were asked: {stray.read_text()}"
    return done
