"""The Hugging Face hub: from a repository's name to a local folder with the files that we may open.

Why    Models and tokenizers are found the same way: first in Hugging Face's cache, so that what worked once works
       offline, then over the network. Nothing that could be code or a pickle is downloaded.
How    `snapshot(name, patterns=..., complete=...)`; huggingface_hub does the work and honours HF_HOME, HF_ENDPOINT,
       HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from linnet.errors import LinnetError

# The published sizes moved to openai-community; a mirror or an old cache may know only one of the names.
MOVED = re.compile(r"gpt2(-medium|-large|-xl)?")
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def snapshot(name: str, *, patterns: Sequence[str], complete: Callable[[Path], bool]) -> Path:
    """The local folder of the hub repository `name`, with its top-level files that match `patterns`.

    Args:
        complete: whether a folder has what is needed; a cached one that has not is downloaded again.

    Raises:
        LinnetError: it is no name on the hub, the hub cannot be reached, or the repository lacks what is needed.
    """
    if not NAME.fullmatch(name):
        raise LinnetError(f"There is no folder {name}, and it is no name on the hub; check the path.")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # Read when the client is imported.
    from huggingface_hub import snapshot_download

    problem: Exception | None = None
    for local_only in (True, False):
        for candidate in [name, f"openai-community/{name}"] if MOVED.fullmatch(name) else [name]:
            try:
                folder = snapshot_download(
                    candidate,
                    allow_patterns=list(patterns),
                    ignore_patterns=["*/*"],
                    local_files_only=local_only,
                )
            except Exception as error:  # Offline: errors of the hub's client, of http and of sockets.
                problem = error
                continue
            if complete(Path(folder)):
                return Path(folder)
    reason = (
        f"the hub did not give it ({type(problem).__name__})"
        if problem
        else "its files are not what is needed"
    )
    raise LinnetError(f"There is no folder {name}, it is not in the local cache, and {reason}.") from problem
