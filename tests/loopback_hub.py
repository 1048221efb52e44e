"""A hub on this machine: enough of the protocol for the real huggingface_hub client, over a folder of repositories.

How: `with LoopbackHub(root) as hub:` serves root/OWNER/NAME (or root/NAME) at `hub.endpoint`; set HF_ENDPOINT to it.
What was asked for is in `hub.requests`, as "METHOD path".
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit


class LoopbackHub:
    def __init__(self, root: Path) -> None:
        hub = self
        self.requests: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                parts = unquote(urlsplit(self.path).path).strip("/").split("/")
                if parts[:2] == ["api", "models"]:
                    self.answer_info(parts[2:])
                elif "resolve" in parts:
                    self.answer_file(parts)
                else:
                    self.answer(404, b"{}")

            do_HEAD = do_GET

            def answer_info(self, parts: list[str]) -> None:
                """What is in a repository: /api/models/NAME[/revision/REV], and /api/models/NAME/tree/REV."""
                ends = [parts.index(word) for word in ("revision", "tree") if word in parts]
                name = parts[: ends[0]] if ends else parts
                folder = root.joinpath(*name)
                if not folder.is_dir():
                    self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                    return
                paths = sorted(path for path in folder.rglob("*") if path.is_file())
                files = {path.relative_to(folder).as_posix(): path for path in paths}
                if "tree" in parts:
                    tree = [
                        {"type": "file", "path": file, "size": path.stat().st_size, "oid": oid_of(path)}
                        for file, path in files.items()
                    ]
                    self.answer(200, json.dumps(tree).encode())
                    return
                info = {
                    "_id": "1",
                    "id": "/".join(name),
                    "sha": commit_of(folder),
                    "private": False,
                    "tags": [],
                    "siblings": [{"rfilename": file} for file in files],
                }
                self.answer(200, json.dumps(info).encode())

            def answer_file(self, parts: list[str]) -> None:
                at = parts.index("resolve")
                folder = root.joinpath(*parts[:at])
                path = folder.joinpath(*parts[at + 2 :])
                if not path.is_file():
                    self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                    return
                headers = {"ETag": f'"{oid_of(path)}"', "X-Repo-Commit": commit_of(folder)}
                self.answer(200, path.read_bytes(), headers)

            def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def commit_of(folder: Path) -> str:
    """A commit id that stays the same while the folder does."""
    return hashlib.sha1(folder.as_posix().encode()).hexdigest()


def oid_of(path: Path) -> str:
    """git's id of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
