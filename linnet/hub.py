"""The Hugging Face hub: from a repository's name to a local folder with the files that we may open.

Why    Models and tokenizers are found the same way: first in Hugging Face's cache, so that what worked once works
       offline, then over the network. Nothing that could be code or a pickle is downloaded.
How    `snapshot(name, patterns=..., missing=...)`; huggingface_hub does the work and honours HF_HOME, HF_ENDPOINT,
       HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from linnet.errors import DiskError, LinnetError
from linnet.files import disk_errors

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
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # Read when the client is imported.
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
    reason = f"the hub did not give it ({type(problem).__name__})" if problem else "the hub has no more"
    raise LinnetError(f"There is no folder {name}, {where}, and {reason}.") from problem


def missing_tokenizer(folder: Path) -> str:
    """The tokenizer's file that `folder` lacks; "" with tokenizer.json, or vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file() or not (
        lacking := [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    ):
        return ""
    return "tokenizer.json" if len(lacking) == 2 else lacking[0]
