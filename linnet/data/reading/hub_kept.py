"""What was found of a data set on the hub, kept for the next time.

What   `HubSet`, and one small file for each source that was found, in HF_HOME/assets/linnet, where Hugging Face's
       client has room for others.
Why    The second time needs no network, and takes the same commit: a run goes on with the data that it began with.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linnet import files
from linnet.data.reading.hub_files import HubFile
from linnet.errors import DiskError

FORMAT = 1


@dataclass(frozen=True)
class HubSet:
    """What was found.

    Attributes:
        source: as it stands in the recipe.
        name, config, revision: the repository that was taken; the revision is a commit.
        split: of which `files` are, in order.
        held_out_split: the data set's own, of which `held_out_files` are; "" if it has none.
        took: one sentence about what was taken, and whether the split is partial.
    """

    source: str
    name: str
    config: str
    revision: str
    split: str
    held_out_split: str
    files: tuple[HubFile, ...]
    held_out_files: tuple[HubFile, ...]
    took: str


def keep(found: HubSet) -> None:
    """Keep it under its source."""
    content = json.dumps({"format": FORMAT, "set": asdict(found)}, indent=1).encode()
    path = _path_of(found.source)
    with suppress(DiskError, OSError):  # The next time the hub is asked again.
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_file(path, [content])


def read_kept(source: str) -> HubSet | None:
    """What was kept for `source`; None where there is nothing, or something that is not ours."""
    try:
        content = json.loads(_path_of(source).read_bytes())
        if content["format"] != FORMAT:
            return None
        values = content["set"]
        for key in ("files", "held_out_files"):
            values[key] = tuple(_file(entry) for entry in values[key])
        return HubSet(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path_of(source: str) -> Path:
    from huggingface_hub import constants

    name = f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.json"
    return Path(constants.HF_ASSETS_CACHE, "linnet", "data-sets", name)


def _file(entry: dict[str, Any]) -> HubFile:
    options = tuple((key, value) for key, value in entry.pop("options"))
    return HubFile(**entry, options=options)
