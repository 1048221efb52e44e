"""Which folder a model's name means: a run, a model folder, or a model on the hub.

Why apart from reading: `linnet plan` and `train` ask where a model lies without opening it.
How: folders come first; a name on the hub is looked up in Hugging Face's cache before the network, so that what
worked once works offline. Only files that cannot be code are downloaded.
"""

import json
from pathlib import Path

from linnet import files
from linnet.errors import DiskError, LinnetError
from linnet.hub import missing_tokenizer, snapshot

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "README.md")  # None of these can be code.


def resolve_model(name: str | Path) -> Path:
    """The folder with config.json that `name` means: a model folder, a run folder (its model/), a hub name.

    A hub name is taken from Hugging Face's cache if it is there, else downloaded (HF_HOME and HF_ENDPOINT are
    honoured). LinnetError where there is no such folder, it holds no model, or the hub cannot be reached.
    """
    folder = files.expand_home(name)
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if (folder / "recipe.toml").is_file():
        raise LinnetError(f"The run {folder} has no model yet: train it first, or go on with its training.")
    if folder.is_dir():
        raise LinnetError(
            f"{folder} holds no model: there is no config.json in it; name a run or a model folder."
        )
    if folder.exists():
        raise LinnetError(f"{folder} is a file; name the model folder that it lies in.")
    try:
        return snapshot(str(name), patterns=HUB_FILES, missing=_missing)
    except DiskError:
        raise
    except LinnetError as error:
        raise LinnetError(
            f"{error} Check the name; offline, copy config.json, model.safetensors and tokenizer.json into a folder "
            "and name it."
        ) from error


def _missing(folder: Path) -> str:
    """The first file that a model in Hugging Face's cache lacks: a shard, say, after an interrupted download."""
    if not (folder / "config.json").is_file():
        return "config.json"
    return _missing_weights(folder) or missing_tokenizer(folder)


def _missing_weights(folder: Path) -> str:
    if (folder / WEIGHTS).is_file():
        return ""
    try:
        shards = json.loads((folder / INDEX).read_bytes())["weight_map"].values()
        return next((str(shard) for shard in shards if not (folder / str(shard)).is_file()), "")
    except FileNotFoundError:
        return WEIGHTS
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"a readable {INDEX}"
