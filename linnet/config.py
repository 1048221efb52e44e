"""The recipe: the whole description of one run, as a TOML file and as typed Python.

What   One small model for each part (data, tokenizer, model, train, sample, track). A stage is given its own part
       and sees no other's.
Why    A wrong key or value must be found before anything is computed, and answered with the key to type.
How    `load_recipe("lines", ["data.source=notes.txt", "train.steps=200"])`; the docstring below each field is its
       help text. `"auto"` means: chosen from data and machine at the start of the run, and the choice is said.
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
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from linnet.errors import LinnetError, UsageError

FORMAT_VERSION = 1
RECIPES = Path(__file__).parent / "recipes"

Auto = Literal["auto"]
OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
DataFormat = Literal["text", "lines", "instruct", "chat", "papers"]


class Part(BaseModel):
    """Base of all parts: unknown keys are errors, values keep their type (no "5" for 5)."""

    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, frozen=True, allow_inf_nan=False
    )


class ColumnsConfig(Part):
    text: str = ""
    """Column of the text (formats `text` and `lines`)."""
    question: str = ""
    """Column of the question, instruction or prompt (`instruct`)."""
    input: str = ""
    """Column of what the question is about, put below it (`instruct`); may be empty in a row."""
    answer: str = ""
    """Column of the answer, output, completion or solution (`instruct`)."""
    system: str = ""
    """Column of a system message (`instruct`, `chat`)."""
    messages: str = ""
    """Column of the turns, a list of {role, content} or {from, value} (`chat`)."""
    article: str = ""
    """Column of the article (`papers`)."""
    abstract: str = ""
    """Column of the abstract (`papers`)."""
    title: str = ""
    """Column of the title (`papers`)."""
    sections: str = ""
    """Column of the section names (`papers`)."""


class FiltersConfig(Part):
    exact_duplicates: bool = False
    """Keep one of rows that are equal."""
    near_duplicates: float = Field(default=0.0, ge=0, le=1)
    """Drop a row that is at least this similar to an earlier one (estimated Jaccard index of five-word phrases, such as
    0.8); 0 keeps all. Training rows near a held-out one go in any case, from 0.8 on."""
    language: list[str] = []
    """Drop rows that are surely in no language of this list, such as ["en"]; an empty list keeps all. Needs
    linnet[language]."""
    shortest: int = Field(default=0, ge=0)
    """Drop rows of fewer characters, all turns together."""
    longest: Annotated[int, Field(gt=0)] | Literal["off"] = "off"
    """Drop rows of more characters, all turns together."""
    repetition: float = Field(default=1.0, ge=0, le=1)
    """Drop rows with a larger share of repeated text (characters in repeated lines, or repeated five-word phrases); 1
    keeps all, 0.3 is a place to start."""
    symbols: float = Field(default=1.0, ge=0, le=1)
    """Drop rows with a larger share of characters that are no letters, digits, spaces or ordinary punctuation; 1 keeps
    all, 0.1 is a place to start for prose."""
    digits: float = Field(default=1.0, ge=0, le=1)
    """Drop rows with a larger share of digits; 1 keeps all, 0.15 is a place to start for prose."""
    boilerplate: bool = False
    """Cut Project Gutenberg's header and licence, lines of copyright, licence and cookies, a web page's menu."""
    references: bool = False
    """Cut the list of references at the end of an article."""
    citations: bool = False
    """Cut `@xcite`, `[ 12 ]` and the empty brackets that citations leave. Not for code, where [12] is an index."""
    formulas: bool = False
    """Cut `@xmath0` and LaTeX documents amid the text, and the empty brackets that they leave."""


class DataConfig(Part):
    source: str | list[str] = ""
    """A file, a folder, a glob, `hf:owner/name[/config][@revision]`, or a list of these."""
    format: DataFormat = "text"
    """How a row becomes an example: `text` (a document), `lines` (each line is one), `instruct` (question, answer),
    `chat` (turns), `papers` (abstract, article)."""
    validation: float | str = 0.1
    """The share that is held out, or a source of its own. 0 holds out nothing."""
    columns: ColumnsConfig = ColumnsConfig()
    filters: FiltersConfig = FiltersConfig()
    learn: Literal["answers", "all"] = "answers"
    """What is learned of a row with targets: the answers (assistant's turns, article), or all of it."""
    target: Literal["article", "abstract"] = "article"
    """What `papers` learns to write: the article from its abstract, or the abstract from its article."""
    reads: Literal["start", "ends", "spread"] = "start"
    """What of an article that is too long is read to write its abstract: its beginning, its beginning and end, or the
    first sentences of all its paragraphs."""
    max_rows: int | None = Field(default=None, gt=0)
    """Read only the first rows of the source, so many."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """The share of bad rows that is set aside in quarantine.jsonl before the run stops."""
    drop: str = ""
    """File of row ids, one a line, that are left out; `linnet inspect` prints ids."""
    keep: str = ""
    """File of row ids, one a line, that are kept whatever the filters say."""
    prepared: str = "auto"
    """Folder of the prepared data; auto: prepared/RECIPE-<hash>."""
    workers: int | Auto = "auto"
    """Processes that prepare the data; auto: one for each core where it pays. It never changes the result."""
    engine: Literal["local", "ray"] = "local"
    """Where the preparing runs: on this machine, or on a Ray cluster."""


class TokenizerConfig(Part):
    name: str = "auto"
    """`gpt2`, `bpe` (trained on the data), `char`, a folder; auto: the initial model's, from scratch `bpe`."""
    vocab_size: int = Field(default=8192, ge=257)
    """Most entries of a `bpe` trained here; small texts get fewer."""


class ModelConfig(Part):
    init_from: str = "scratch"
    """`scratch`, `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, a run, a model folder or a hub name."""
    n_layer: int = Field(default=6, gt=0)
    """Blocks (from scratch)."""
    n_head: int = Field(default=6, gt=0)
    """Attention heads for each block (from scratch)."""
    n_embd: int = Field(default=384, gt=0)
    """Width (from scratch); a multiple of n_head."""
    n_positions: int | Auto = "auto"
    """Longest window of the model (from scratch); auto: block_size."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout during training."""
    initializer_range: float = Field(default=0.02, gt=0, lt=1)
    """Standard deviation of the weights at the start (from scratch)."""


class TrainConfig(Part):
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps. Setting it clears `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training data. Setting it clears `steps`."""
    batch_size: int | Auto = "auto"
    """Packed rows for one optimizer step, over all devices; auto: about 8,192 tokens, at least 20 steps an epoch."""
    micro_batch_size: int | Auto = "auto"
    """Rows computed at once; auto: what fits. It never changes the result beyond rounding."""
    block_size: int | Auto = "auto"
    """Tokens in a row; auto: the longest example (row formats), or what the text and the model allow."""
    optimizer: OptimizerName = "adamw"
    """`adamw`, or `muon` for the blocks' matrices with AdamW for the rest."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak of the learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay, of matrices only."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's momentum; a run of a few hundred steps wants less."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises to its peak."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 leaves it as it is."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after the warm-up; `wsd` is warm-up, stable, decay over the last 40 %."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the products; master weights and optimizer state are always fp32."""
    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Seed of the initial weights and of the order of the data."""
    log_every: int = Field(default=1, gt=0)
    """Steps between two rows of metrics.jsonl."""
    eval_every: int | Auto = "auto"
    """Steps between two evaluations; auto: a tenth of the run."""
    eval_tokens: int = Field(default=100_000, gt=0)
    """Most held-out tokens that an evaluation reads."""
    save_every: int | Auto = "auto"
    """Steps between two checkpoints; auto: a tenth of the run. The best and the last are saved in any case."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept, beside the best."""
    patience: int | Literal["off"] = "off"
    """Stop early after so many evaluations without a new best."""
    compile: bool = False
    """torch.compile the network (slow first step)."""


class SampleConfig(Part):
    prompts: list[str] = [""]
    """What the model is asked to continue at each evaluation."""
    max_new_tokens: int = Field(default=60, ge=0)
    """Length of these samples; 0 writes none."""
    temperature: float = Field(default=0.8, ge=0)
    """Temperature of these samples."""


class TrackConfig(Part):
    sinks: list[str] = []
    """Places beside metrics.jsonl that receive the metrics; none yet."""


class Recipe(Part):
    format_version: int = FORMAT_VERSION
    """Version of this file's layout."""
    name: str = ""
    """Name of the recipe; the default run is runs/NAME."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    track: TrackConfig = TrackConfig()


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
    if recipe.track.sinks:
        raise UsageError("track.sinks does nothing in this version of Linnet; leave it out.")
    positions, block = model.n_positions, train.block_size
    if model.init_from == "scratch" and positions != "auto" and block != "auto" and block > positions:
        raise UsageError(
            f"train.block_size={block} is over the model's positions, model.n_positions={positions}; "
            f"set train.block_size={positions} or model.n_positions={block}."
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
