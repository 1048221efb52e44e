"""A W&B server on the loopback: it knows the questions that a run asks, and keeps the rows of its history.

Why: what a resumed run does depends on what the server says it has, and wandb's own process must be the one to ask.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p1", "name": "linnet", "entity": {"id": "e1", "name": "me"}}


class LoopbackWandb(ThreadingHTTPServer):
    """The server; `runs` has the history's lines by the run's id, `sent` everything that was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.runs: dict[str, dict[int, str]] = {}
        self.sent: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def history(self, run_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.runs[run_id].items())]

    def graphql(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        if operation == "Viewer":
            return {"viewer": {"id": "u1", "username": "me", "entity": "me", "email": "", "flags": "{}"}}
        if operation == "UpsertBucket":
            is_new = values["name"] not in self.runs
            self.runs.setdefault(values["name"], {})
            return {"upsertBucket": {"bucket": self.bucket(values["name"]), "inserted": is_new}}
        if operation == "RunResumeStatus":
            known = values["name"] in self.runs
            return {"model": PROJECT | {"bucket": self.bucket(values["name"]) if known else None}}
        if operation == "CreateRunFiles":
            places = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": places}}
        return {}

    def bucket(self, run_id: str) -> dict[str, Any]:
        lines = [line for _, line in sorted(self.runs[run_id].items())]
        return {
            "id": f"b-{run_id}",
            "name": run_id,
            "displayName": run_id,
            "description": "",
            "config": "{}",
            "project": PROJECT,
            "historyLineCount": len(lines),
            "historyTail": json.dumps(lines[-1:]),
            "summaryMetrics": lines[-1] if lines else "{}",
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackWandb

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        content = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.sent.append(content.decode())
        asked = json.loads(content)
        if self.path == "/graphql":
            self.answer({"data": self.server.graphql(asked["operationName"], asked.get("variables") or {})})
            return
        rows = (asked.get("files") or {}).get("wandb-history.jsonl")
        if rows:  # /files/ENTITY/PROJECT/RUN/file_stream
            of_run = self.server.runs[self.path.split("/")[4]]
            of_run.update(enumerate(rows["content"], start=rows["offset"]))
        self.answer({})

    def do_PUT(self) -> None:
        self.server.sent.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.answer({})

    def answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def loopback_wandb() -> Iterator[LoopbackWandb]:
    """The server, running until the block ends."""
    server = LoopbackWandb()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
