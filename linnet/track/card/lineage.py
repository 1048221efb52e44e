"""Where a model's initial weights come from: its parent, that one's parent, and so on to a name on the hub.

What   `origin_of(folder)` for environment.json; `parents_of(parent)` reads the chain back, for the card.
Why    A model that was trained from a run that was trained from gpt2 is a gpt2 with that one's licence; a card says so.
How    A folder in Hugging Face's cache tells its repository and commit by its path. A run's model/ has the run's
       environment.json beside it, which holds the rest of the chain. Any model folder may have a card (README.md),
       whose metadata names base model and licence. What is not known is left out; nothing is guessed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from linnet.hub import no_telemetry

CARD = "README.md"
DEEPEST = 20  # parents that are followed; a chain that is longer was not made by training
LARGEST_CARD = 1 << 20  # bytes that are parsed
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
PUBLISHED = re.compile(r"gpt2(-medium|-large|-xl)?")


def origin_of(folder: Path) -> dict[str, Any]:
    """What is known of the model folder's own origin, for `parent` in environment.json.

    Returns:
        `hub` and `revision` where it is a repository in Hugging Face's cache; `license` and `base_model` as its card
        has them; `parent`: that of the run whose model/ it is. A key that is not known is missing.
    """
    known: dict[str, Any] = {}
    *_, repository, snapshots, revision = ("", "", *folder.absolute().parts)
    if snapshots == "snapshots" and repository.startswith("models--"):
        known |= {
            "hub": hub_name(repository.removeprefix("models--").replace("--", "/")),
            "revision": revision,
        }
    metadata = card_metadata(folder / CARD)
    for key in ("license", "base_model"):
        value = metadata.get(key)
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, str) and first:
            known[key] = first
    if folder.name == "model":
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known["parent"] = dict(json.loads((folder.parent / "environment.json").read_bytes())["parent"])
    return known


def parents_of(parent: object) -> Iterator[Mapping[str, Any]]:
    """The parent of a run, as environment.json has it, then its parent, and so on; from scratch there is none."""
    for _ in range(DEEPEST):
        if not isinstance(parent, Mapping) or parent.get("init_from") in (None, "scratch"):
            return
        yield parent
        parent = parent.get("parent")


def base_model_of(parent: object) -> str | None:
    """The nearest ancestor that has a name on the hub; None where none is known."""
    for one in parents_of(parent):
        for key in ("hub", "base_model"):
            name = one.get(key)
            if isinstance(name, str) and HUB_NAME.fullmatch(hub_name(name)):
                return hub_name(name)
    return None


def license_of(parent: object) -> str | None:
    """The licence in the card of the nearest ancestor that has one; None where none is known."""
    found = (one.get("license") for one in parents_of(parent))
    return next((name for name in found if isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name)), None)


def hub_name(name: str) -> str:
    """The full name of a repository: the published sizes of GPT-2 moved to openai-community."""
    return f"openai-community/{name}" if PUBLISHED.fullmatch(name) else name


def card_metadata(path: Path) -> dict[str, Any]:
    """The metadata at the head of a card; {} where there is none, or none that can be read."""
    if not path.is_file() or path.stat().st_size > LARGEST_CARD:
        return {}
    no_telemetry()
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(path)
    except Exception:  # Of yaml, of decoding, of the file: anybody may have written it.
        return {}
    return metadata if isinstance(metadata, dict) else {}
