"""A recipe without what its paths tell of somebody's machine: for the card, and for what goes to a server.

Why    `/home/name/clients/acme/data.jsonl` is private where `data.jsonl` is not.
How    Of each path only the last name stays; names of the hub stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PATHS = ("data.source", "data.validation", "data.drop", "data.keep", "data.prepared")
MODELS = ("model.init_from", "tokenizer.name")  # A path, or a name that is known everywhere.


def last_name(place: str) -> str:
    """Of a path, also of Windows, the last name: the others are the user's own."""
    return re.split(r"[\\/]", place.rstrip("\\/"))[-1]


def model_name(place: str) -> str:
    """The last name of a model's path; `first` of `runs/first/model`, as every run's model is called model."""
    return last_name(re.sub(r"(?<=[^\\/])[\\/]+model[\\/]*$", "", place))


def without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the last name instead of each path."""
    own = {part: dict(keys) if isinstance(keys, Mapping) else keys for part, keys in recipe.items()}
    for key in (*PATHS, *MODELS):
        part, _, name = key.partition(".")
        keys = own.get(part)
        value = keys.get(name) if isinstance(keys, dict) else None
        if isinstance(keys, dict) and isinstance(value, str | list):
            shown = [
                _place(str(one), is_model=key in MODELS)
                for one in (value if isinstance(value, list) else [value])
            ]
            keys[name] = shown if isinstance(value, list) else shown[0]
    return own


def _place(value: str, *, is_model: bool) -> str:
    """A name of the hub (`owner/name`) as it is, of a path the last name; of a run's model/ the run's."""
    if value.startswith("hf:") or (is_model and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value)):
        return value
    return model_name(value) if is_model else last_name(value)
