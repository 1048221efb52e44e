"""The Hugging Face hub: from a repository's name to a local folder with the files that we may open.

Why    Models and tokenizers are found the same way: first in Hugging Face's cache, so that what worked once works
       offline, then over the network. Nothing that could be code or a pickle is downloaded.
How    `snapshot(name, patterns=..., missing=...)`; huggingface_hub does the work and honours HF_HOME, HF_ENDPOINT,
       HF_TOKEN and HF_HUB_OFFLINE. `why_not` turns an error of its into words. Data sets: data/reading/hub_sets.py.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from linnet.errors import DiskError, LinnetError
from linnet.files import disk_errors

Answer = TypeVar("Answer")

# The published sizes moved to openai-community; a mirror or an old cache may know only one of the names.
MOVED = re.compile(r"gpt2(-medium|-large|-xl)?")
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def snapshot(name: str, *, patterns: Sequence[str], missing: Callable[[Path], str]) -> Path:
    """The local folder of the hub repository `name`, with its top-level files that match `patterns`.

    Args:
        missing: the file that a folder lacks, "" if it has all that is needed. A cached folder that lacks one, as an
            interrupted download leaves it, is downloaded again.

    Raises:
        LinnetError: it is no name on the hub, the hub cannot be reached, or the repository lacks what is needed.
        DiskError: the download does not fit the disk.
    """
    if not NAME.fullmatch(name):
        raise LinnetError(f"There is no folder {name}, and it is no name on the hub; check the path.")
    no_telemetry()
    from huggingface_hub import constants, snapshot_download

    problem: Exception | None = None
    lacking = ""
    for local_only in (True, False):
        for candidate in [name, f"openai-community/{name}"] if MOVED.fullmatch(name) else [name]:
            try:
                with disk_errors(Path(constants.HF_HUB_CACHE, "models")):
                    folder = snapshot_download(
                        candidate,
                        allow_patterns=list(patterns),
                        ignore_patterns=["*/*"],
                        local_files_only=local_only,
                    )
            except DiskError:
                raise
            except Exception as error:  # Offline: errors of the hub's client, of http and of sockets.
                problem = error
                continue
            lacking = missing(Path(folder))
            if not lacking:
                return Path(folder)
    where = f"its copy in the local cache lacks {lacking}" if lacking else "it is not in the local cache"
    reason = why_not(problem) if problem else "the hub has no more"
    raise LinnetError(f"There is no folder {name}, {where}, and {reason}.") from problem


def no_telemetry() -> None:
    """Switch off what the clients of the hub report; they read this when they are imported, so call it before."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # datasets counts its uses at another host


def retried(ask: Callable[[], Answer]) -> Answer:
    """`ask()`; once more after half a second and after two where the hub is busy (429) or in trouble (5xx).

    The clients do so for some requests only. Any other error is raised at once, so that being offline costs no time.
    """
    for wait in (0.5, 2.0):
        try:
            return ask()
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status != 429 and status < 500:
                raise
            time.sleep(wait)
    return ask()


def why_not(error: BaseException) -> str:
    """Why the hub did not give what was asked for, in words that follow "because" and say what to do."""
    from huggingface_hub import errors

    chain = list(causes(error))
    for one in chain:
        if isinstance(one, errors.GatedRepoError):
            if getattr(one.response, "status_code", 0) == 401:
                return "it is gated; accept its terms on the hub, then set HF_TOKEN or run `hf auth login`"
            return "it is gated, and your token does not open it; ask for access on its page on the hub"
        if isinstance(one, errors.RepositoryNotFoundError):
            return "the hub has none of that name, or it is private; check the name, or set HF_TOKEN (`hf auth login`)"
        if isinstance(one, errors.RevisionNotFoundError):
            return "the hub has no such revision of it; check what follows the @"
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to ask the hub"
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status in (401, 403):
            return "the hub does not accept your token; check HF_TOKEN, or run `hf auth login`"
        if status:
            return f"the hub answers with status {status}; try again later"
    if any("Connect" in type(one).__name__ or "Timeout" in type(one).__name__ for one in chain):
        return "the hub cannot be reached; check the network"
    return f"the hub did not give it ({type(error).__name__})"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def missing_tokenizer(folder: Path) -> str:
    """The tokenizer's file that `folder` lacks; "" with tokenizer.json, or vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file() or not (
        lacking := [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    ):
        return ""
    return "tokenizer.json" if len(lacking) == 2 else lacking[0]
