"""Which folder a model's name means: a run, a model folder, or a model on the hub.

Why apart from reading: `linnet plan` and `train` ask where a model lies without opening it.
How: folders come first; a name on the hub is looked up in Hugging Face's cache before the network, so that what
worked once works offline. Only files that cannot be code are downloaded.
"""

import re
from pathlib import Path

from linnet.errors import LinnetError
from linnet.model.gpt2 import SIZES


def resolve_model(name: str | Path) -> Path:
    """The folder with config.json that `name` means: a model folder, a run folder (its model/), a hub name.

    A hub name is taken from Hugging Face's cache if it is there, else downloaded (HF_HOME and HF_ENDPOINT are
    honoured). LinnetError where there is no such folder, it holds no model, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
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
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name)):
        raise LinnetError(f"There is no folder {folder}; name a run, a model folder, or a model on the hub.")
    return _from_hub(str(name))


def _from_hub(name: str) -> Path:
    """Download (or find in the cache) what a model folder may hold, and nothing that could be code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    # The published sizes moved to openai-community; a mirror or an old cache may know only one of the names.
    names = [name, f"openai-community/{name}"] if name in SIZES else [name]
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    problem: Exception | None = None
    for local_only in (True, False):
        for candidate in names:
            try:
                folder = Path(
                    snapshot_download(
                        candidate, allow_patterns=wanted, ignore_patterns=["*/*"], local_files_only=local_only
                    )
                )
            except HFValidationError as error:
                raise LinnetError(f"There is no folder {name}, and it is no name on the hub.") from error
            except Exception as error:  # offline: hub, http and socket errors of several libraries
                problem = error
                continue
            whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
            if whole or not local_only:
                return folder
    raise LinnetError(
        f"There is no folder {name}, and the hub did not give a model of that name ({type(problem).__name__}): "
        f"check the name; offline, copy config.json, model.safetensors and tokenizer.json into a folder and name it."
    ) from problem
