"""The recipe as a file: the whole description of one run in TOML, with `KEY=VALUE` laid over it.

What   `load_recipe("lines", ["data.source=notes.txt", "train.steps=200"])` gives a `Recipe` (config.py).
Why    A wrong key or value must be found before anything is computed, and answered with the key to type.
How    A recipe is flattened to dotted keys, each value is fitted to its field's type, and the parts are built anew.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from linnet.config import FORMAT_VERSION, SINKS, Part, Recipe
from linnet.errors import LinnetError, UsageError

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a built-in recipe or a TOML file and lay overrides over it.

    Args:
        name_or_path: a name from `recipe_names()` or the path of a .toml file.
        overrides: `KEY=VALUE` strings from a command line, or a mapping of dotted keys to typed values.

    Raises:
        UsageError: an unknown key or recipe, a value of the wrong type.
        LinnetError: a file that is missing or is not TOML.
    """
    values = read_recipe_values(name_or_path)
    return build_recipe(values, parse_overrides(overrides), where=name_or_path)


def read_recipe_values(name_or_path: str) -> dict[str, Any]:
    """The keys that a recipe file sets itself, as nested dictionaries; `name` is filled in."""
    if name_or_path in recipe_names():
        text = (RECIPES / f"{name_or_path}.toml").read_text(encoding="utf-8")
        return {"name": name_or_path} | tomllib.loads(text)
    path = Path(name_or_path)
    if path.exists() and path.suffix != ".toml":
        raise UsageError(f"{path} is no recipe; to train on it type: linnet train text data.source={path}")
    if not path.is_file():
        near = difflib.get_close_matches(name_or_path, recipe_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"built-in recipes are {', '.join(recipe_names())}."
        raise UsageError(f"There is no recipe named {name_or_path} and no such file; {hint}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LinnetError(f"{path} is not valid TOML: {error}. Mend that place.") from error
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise LinnetError(
            f"{path}: format_version is {version}, this Linnet reads {FORMAT_VERSION}; use the Linnet that wrote it."
        )
    values = {"name": path.stem} | values
    if not (isinstance(values["name"], str) and re.fullmatch(r"[\w-][\w.-]*", values["name"])):
        raise LinnetError(f'{path}: name={values["name"]!r} must be a plain folder name, such as "mine".')
    return values


def parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Turn `KEY=VALUE` strings into typed values by dotted key.

    A VALUE is read as TOML if that fits the field's type, else as the plain string.

    >>> parse_overrides(["train.steps=200", "data.source=notes.txt"])
    {'train.steps': 200, 'data.source': 'notes.txt'}
    """
    typed: dict[str, Any] = {}
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            typed[key] = _fit(key, [os.fspath(value) if isinstance(value, os.PathLike) else value])
        return typed
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            example = f"data.source={item}" if Path(item).exists() else "train.steps=200"
            raise UsageError(f"{item!r} is not of the form KEY=VALUE; write for example {example}.")
        # Python's True and a lone value for a list are what people type.
        candidates: list[Any] = [text, [text]]
        if text in ("True", "False"):
            candidates.insert(0, text == "True")
        with contextlib.suppress(tomllib.TOMLDecodeError):
            candidates.insert(0, tomllib.loads(f"value = {text}")["value"])
        typed[key.strip()] = _fit(key.strip(), candidates)
    return typed


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parts as dotted keys: {"train": {"steps": 5}} -> {"train.steps": 5}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in _fields():
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def build_recipe(values: Mapping[str, Any], overrides: Mapping[str, Any], *, where: str) -> Recipe:
    """Check `values` (nested, from a file), lay `overrides` (dotted, typed) over them and fill in the defaults.

    Setting one of train.steps / train.epochs in the overrides clears the other; both in one file is an error.
    """
    flat = flatten(values)
    flat = {key: _fit(key, [value], where=where) for key, value in flat.items()}
    if "train.steps" in flat and "train.epochs" in flat:
        raise UsageError(f"{where}: train.steps and train.epochs are both set; keep one of them.")
    if "train.steps" in overrides and "train.epochs" in overrides:
        raise UsageError("train.steps and train.epochs are both given; keep one of them.")
    for chosen, cleared in (("train.steps", "train.epochs"), ("train.epochs", "train.steps")):
        if chosen in overrides:
            flat.pop(cleared, None)
    for key in ("name", "format_version"):
        if key in overrides:
            raise UsageError(
                f"{key} belongs to the recipe's file and cannot be set here; --run names the run's folder."
            )
    flat |= overrides
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parts, field = key.split(".")
        inner = nested
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[field] = value
    recipe = Recipe.model_validate(nested)
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """Rules between keys."""
    model, train = recipe.model, recipe.train
    if model.init_from == "scratch" and model.n_embd % model.n_head:
        raise UsageError(
            f"model.n_embd={model.n_embd} is not divisible by model.n_head={model.n_head}; "
            f"set for example model.n_embd={-(-model.n_embd // model.n_head) * model.n_head}."
        )
    for key in ("batch_size", "micro_batch_size", "block_size", "eval_every", "save_every", "patience"):
        value = getattr(train, key)
        if isinstance(value, int) and value < 1:
            raise UsageError(f"train.{key}={value} must be at least 1.")
    if isinstance(recipe.data.validation, float) and not 0 <= recipe.data.validation < 1:
        raise UsageError(
            f"data.validation={recipe.data.validation} must be at least 0 and below 1, or a source."
        )
    if isinstance(model.n_positions, int) and model.n_positions < 1:
        raise UsageError(f"model.n_positions={model.n_positions} must be at least 1.")
    _check_lora(recipe)
    for sink in recipe.track.sinks:
        if sink not in SINKS:
            near = difflib.get_close_matches(sink, SINKS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SINKS)}."
            raise UsageError(f"track.sinks: there is no sink named {sink}; {hint}")
    positions, block = model.n_positions, train.block_size
    if model.init_from == "scratch" and positions != "auto" and block != "auto" and block > positions:
        raise UsageError(
            f"train.block_size={block} is over the model's positions, model.n_positions={positions}; "
            f"set train.block_size={positions} or model.n_positions={block}."
        )


def _check_lora(recipe: Recipe) -> None:
    lora = recipe.model.lora
    if not lora.rank:
        return
    if recipe.model.init_from == "scratch":
        raise UsageError(
            f"model.lora.rank={lora.rank} trains adapters beside weights that exist, but model.init_from is scratch; "
            "name a model, such as model.init_from=gpt2, or set model.lora.rank=0."
        )
    if not lora.targets:
        raise UsageError(
            'model.lora.targets is empty, so nothing would be trained; name some of "c_attn", "c_proj", "c_fc".'
        )
    # Muon evens out the singular values of a matrix; the factors A and B are none of their own.
    if recipe.train.optimizer == "muon":
        raise UsageError(
            "train.optimizer=muon is for whole matrices, not for adapters; set train.optimizer=adamw, or "
            "model.lora.rank=0."
        )


def fields_of(part: type[Part], prefix: str = "") -> dict[str, Any]:
    """Every dotted key of `part` with its pydantic field."""
    fields: dict[str, Any] = {}
    for name, field in part.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Part):
            fields |= fields_of(inner, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = field
    return fields


@functools.cache
def _fields() -> dict[str, Any]:
    return fields_of(Recipe)


def _fit(key: str, candidates: list[Any], *, where: str = "") -> Any:
    """The first candidate that fits the key's type; an error that names key, value and what is expected."""
    fields = _fields()
    place = f"{where}: " if where else ""
    if key not in fields:
        near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
        by_last = [name for name in fields if name.rpartition(".")[2] == key.rpartition(".")[2]]
        hint = (by_last or near)[:1]
        raise UsageError(
            f"{place}there is no key {key}; "
            + (f"did you mean {hint[0]}?" if hint else "docs/keys.md lists them.")
        )
    field = fields[key]
    adapter = TypeAdapter(_annotated(field), config=ConfigDict(strict=True, allow_inf_nan=False))
    complaint = ""
    for candidate in candidates:
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            complaint = complaint or "; or ".join(
                dict.fromkeys(_plain(entry["msg"]) for entry in error.errors())
            )
    raise UsageError(f"{place}{key}={candidates[0]!r} does not fit: {complaint}.")


def _annotated(field: Any) -> Any:
    """A field's type together with its bounds."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _plain(message: str) -> str:
    """Pydantic's wording, shortened: 'Input should be a valid integer' -> 'should be a valid integer'."""
    return message.removeprefix("Input ").split(", unable")[0]


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML with every default written out; unset `steps` / `epochs` are left out."""
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))
