"""What the hub on this machine answers to an upload: enough for the real huggingface_hub, without xet.

What   `Uploads`, a part of `loopback_hub.Answer`: a repository is made, its card's metadata judged, large files come by
       git LFS (in one piece, or in parts where `hub.part_size` says so), a commit names all files.
How    Large files lie below root/.lfs under their sha256, as on the real hub: they are no part of a repository before a
       commit names them. `hub.writers` maps a token to the owner whose repositories it may write.
       `hub.strike(at, action)` calls `action` at the at-th event and hangs up. An event is the arrival of a request
       that writes, each piece of its body, and the moment before it is answered: an upload can be broken at any place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tests.loopback_hub import LoopbackHub

PIECE = 16 * 1024  # bytes of a body that are an event
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class HungUp(Exception):
    """The connection is cut here."""


class Uploads:
    """The part of a request's handler that takes something."""

    hub: LoopbackHub
    path: str
    command: str
    headers: Any
    rfile: Any
    close_connection: bool

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        raise NotImplementedError

    def answer_upload(self, parts: list[str]) -> bool:
        """Answer a request of an upload; False where it is none."""
        at = next((parts.index(word) for word in ("preupload", "commit") if word in parts), None)
        kinds = {("api", "repos", "create"): self.create, ("api", "validate-yaml"): self.judge_card}
        action: Callable[[str, bytes], tuple[int, Any]] | None = kinds.get(tuple(parts))
        name = ""
        if parts[:2] == ["api", "models"] and at is not None and self.command == "POST":
            name = "/".join(parts[2:at])
            action = self.preupload if parts[at] == "preupload" else self.commit
        elif parts[-4:] == ["info", "lfs", "objects", "batch"]:
            name = "/".join(parts[:-4]).removesuffix(".git")
            action = self.batch
        elif parts[0] == "lfs":
            action = {"PUT": self.store, "POST": self.join}[self.command]
        if action is None:
            return False
        try:
            self.hub.pass_event()
            body = self.read_body()
            if name and not self.may_write(name):
                return True
            status, answer = action(name or "/".join(parts), body)
            self.hub.pass_event()
        except HungUp:
            self.close_connection = True
            return True
        headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'} if self.command == "PUT" else {}
        self.answer(status, json.dumps(answer).encode(), headers)
        return True

    def read_body(self) -> bytes:
        """The body, with its length or in chunks."""
        body = bytearray()
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                self.hub.pass_event()
            self.rfile.readline()
            return bytes(body)
        length = int(self.headers.get("Content-Length", 0))
        while len(body) < length:
            piece = self.rfile.read(min(PIECE, length - len(body)))
            if not piece:
                raise HungUp  # The other side has.
            body += piece
            if self.command == "PUT":
                self.hub.sent_bytes += len(piece)
            self.hub.pass_event()
        return bytes(body)

    def owner(self) -> str | None:
        return self.hub.writers.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, name: str) -> bool:
        """Whether the token may write to the repository; else that is the answer."""
        owner = self.owner()
        if owner is None:
            self.answer(401, b'{"error": "Invalid username or password."}')
        elif owner != name.partition("/")[0]:
            self.answer(403, b'{"error": "You do not have the right to write there."}')
        return owner == name.partition("/")[0]

    def create(self, _: str, body: bytes) -> tuple[int, Any]:
        wanted = json.loads(body)
        owner = self.owner()
        name = f"{wanted.get('organization') or owner}/{wanted['name']}"
        if owner is None:
            return 401, {"error": "Invalid username or password."}
        if owner != name.partition("/")[0]:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {name}"}
        folder, url = self.hub.root / name, f"{self.hub.endpoint}/{name}"
        if folder.exists():
            return 409, {"error": "You already created this model repo", "url": url}
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        if wanted.get("visibility") == "private":
            self.hub.private.add(name)
        return 200, {"url": url, "name": name}

    def judge_card(self, _: str, body: bytes) -> tuple[int, Any]:
        errors = errors_of_card(json.loads(body)["content"])
        return (400 if errors else 200), {"errors": [{"message": one} for one in errors], "warnings": []}

    def preupload(self, name: str, body: bytes) -> tuple[int, Any]:
        """For each file: by LFS or within the commit, and the id of what the repository has under its name."""
        answers = []
        for file in json.loads(body)["files"]:
            is_large = self.hub.is_large(file["path"])
            present = self.hub.root / name / file["path"]
            oid = None
            if present.is_file():
                content = present.read_bytes()
                oid = sha256(content) if is_large else git_id(content)
            mode = "lfs" if is_large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers, "commitOid": None}

    def batch(self, name: str, body: bytes) -> tuple[int, Any]:
        """git LFS: where each large file goes that is not here yet."""
        objects = []
        for wanted in json.loads(body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if not (self.hub.root / ".lfs" / oid).is_file():
                place, header = f"{self.hub.storage}/lfs/{oid}", {}
                if self.hub.part_size:
                    header = {"chunk_size": str(self.hub.part_size)}
                    count = -(-size // self.hub.part_size)
                    header |= {str(n): f"{place}/{n}" for n in range(1, count + 1)}
                entry["actions"] = {"upload": {"href": place, "header": header}}
            objects.append(entry)
        return 200, {"transfer": "multipart" if self.hub.part_size else "basic", "objects": objects}

    def store(self, place: str, body: bytes) -> tuple[int, Any]:
        """A large file, or a part of one."""
        _, oid, *part = place.split("/")
        folder = self.hub.root / ".lfs"
        folder.mkdir(exist_ok=True)
        if not part:
            if sha256(body) != oid:
                return 400, {"error": "the content has another hash"}
            (folder / oid).write_bytes(body)
            self.hub.stored.append(oid)
        else:
            (folder / f"{oid}.{part[0]}").write_bytes(body)
        return 200, {}

    def join(self, place: str, body: bytes) -> tuple[int, Any]:
        """All parts of a large file are here."""
        oid = place.split("/")[1]
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        content = b"".join((self.hub.root / ".lfs" / f"{oid}.{n}").read_bytes() for n in numbers)
        if sha256(content) != oid:
            return 400, {"error": "the content has another hash"}
        (self.hub.root / ".lfs" / oid).write_bytes(content)
        self.hub.stored.append(oid)
        return 200, {}

    def commit(self, name: str, body: bytes) -> tuple[int, Any]:
        """The repository with the files that the lines name, whole or not at all."""
        from tests.loopback_hub import commit_of

        folder = self.hub.root / name
        beside = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(folder, beside)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                (beside / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                stored = self.hub.root / ".lfs" / value["oid"]
                if not stored.is_file():
                    return 400, {"error": f"the content of {value['path']} was not sent"}
                shutil.copyfile(stored, beside / value["path"])
        shutil.rmtree(folder)
        beside.rename(folder)
        self.hub.commits.append(sorted(path.name for path in folder.iterdir()))
        oid = commit_of(folder)
        url = f"{self.hub.endpoint}/{name}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None}


def errors_of_card(content: str) -> list[str]:
    """What the hub refuses in a card's metadata, as far as its documentation says it."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    errors = []
    for key in ("base_model", "datasets"):
        names = data.get(key, [])
        names = names if isinstance(names, list) else [names]
        errors += [f'"{key}" has {name!r}' for name in names if not NAME.fullmatch(str(name))]
    for key, pattern in (
        ("license", r"[a-z0-9.-]+"),
        ("pipeline_tag", r"[a-z-]+"),
        ("library_name", r"[\w-]+"),
    ):
        if key in data and not (isinstance(data[key], str) and re.fullmatch(pattern, data[key])):
            errors.append(f'"{key}" is {data[key]!r}')
    language = data.get("language", [])
    language = language if isinstance(language, list) else [language]
    errors += [f'"language" has {one!r}' for one in language if not re.fullmatch(r"[a-z]{2,3}", str(one))]
    for model in data.get("model-index", []):
        errors += [] if isinstance(model.get("name"), str) else ['"model-index[0].name" is required']
        for result in model["results"]:
            texts = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
            texts += [metric["type"] for metric in result["metrics"]]
            errors += ['"model-index" lacks a name'] * (
                not all(isinstance(text, str) and text for text in texts)
            )
            numbers = [metric["value"] for metric in result["metrics"]]
            errors += ['"model-index" lacks a value'] * (
                not all(isinstance(one, int | float) for one in numbers)
            )
    return errors


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    """git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
