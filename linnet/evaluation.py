"""`linnet eval`: models on held-out text, each with its own tokenizer, side by side.

What   `evaluate` gives one report for each model: loss, perplexity, bits per byte, and how its answers end.
Why    A number is worth something only on text that the model has not learned from, read as it was read in training.
How    A run knows its recipe and, in its checkpoint, the fingerprint of its data: its held-out split is that of the
       training or nothing. `data` names any other source; all of it is prepared, and all of it is measured. A model
       that is no run is measured as the first run beside it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from linnet import api, files
from linnet.config import DataConfig, DataFormat, FiltersConfig, Recipe
from linnet.data.batches import Batch, validation_batches
from linnet.data.store import Store
from linnet.errors import LinnetError, UsageError
from linnet.evaluate.judge import METRICS, judge
from linnet.evaluate.progress import MeasuringProgress
from linnet.evaluate.questions import choose_questions, write_answers
from linnet.evaluate.rouge import require_rouge
from linnet.evaluate.score import measure
from linnet.evaluate.windows import strided_batches
from linnet.generate.engine import Model
from linnet.model.pretrained import read_config
from linnet.model.resolve import resolve_model
from linnet.preparing import SCRATCH, prepare_store
from linnet.recipe import build_recipe, parse_overrides
from linnet.run import RunFolder
from linnet.training.checkpoint import STATE, saved_steps

TOKENS_AT_ONCE = 8192  # of the rows that are computed together
WITHOUT_QUESTIONS = ("text",)
EVERYTHING = 2**62  # tokens


@dataclass(frozen=True)
class Settings:
    """What is measured, and how."""

    data: str = ""
    """A source; "": each run's own held-out split."""
    format: str | None = None
    """How `data` is read; None: as the run reads its own."""
    limit_tokens: int | None = None
    """Measure the loss on at most so many tokens; None: on all."""
    stride: int | None = None
    """Tokens by which the windows of long text move on; None: half a window."""
    generate: int = 16
    """Questions that are answered; 0 writes nothing."""
    max_new_tokens: int = 256
    """Longest answer."""
    temperature: float = 0.8
    """Of the answers: that of `linnet generate`; 0 takes the likeliest token, which leads small models in circles."""
    metrics: Sequence[str] = ()
    """Of METRICS; none: those that fit the data."""
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for key, least in {"limit_tokens": 1, "stride": 1, "generate": 0, "max_new_tokens": 1}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise UsageError(f"--{key.replace('_', '-')} is {value}, but must be at least {least}.")
        for metric in self.metrics:
            if metric not in METRICS:
                raise UsageError(f"--metric is {metric!r}, but must be one of {', '.join(METRICS)}.")
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(
                f"--precision is {self.precision!r}, but must be fp32 or bf16: the loss is measured with the weights "
                "as they are."
            )
        if self.metrics and not self.generate:
            raise UsageError("--metric judges answers: set --generate to at least 1.")
        if self.format not in (None, *get_args(DataFormat)):
            names = ", ".join(get_args(DataFormat))
            raise UsageError(f"--format is {self.format!r}, but must be one of {names}.")
        if self.format and not self.data:
            raise UsageError(
                "--format says how --data is read; a run's own split is read as in its training."
            )
        if "rouge" in self.metrics:
            require_rouge()


@dataclass(frozen=True)
class Trained:
    """What a run knows of its training: the recipe, the fingerprint of its data, the length of its rows."""

    root: Path
    recipe: Recipe
    data: str
    block_size: int


@dataclass(frozen=True)
class Subject:
    """A model to be measured: its folder, and the run that it comes from, if any."""

    name: str
    folder: Path
    trained: Trained | None


@dataclass(frozen=True)
class Material:
    """Text in a model's tokens, and the length of the rows in which the model reads it."""

    store: Store
    data: DataConfig
    split: str
    block_size: int

    @property
    def source(self) -> str:
        source = self.data.source
        return source if isinstance(source, str) else ", ".join(source)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def evaluate(
    models: Sequence[str],
    settings: Settings = Settings(),
    *,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = _say,
) -> list[dict[str, Any]]:
    """Measure each of `models` (runs, model folders, names on the hub); a report for each, in order.

    The keys of a report are those of `linnet eval --json`; docs/eval.md explains them.

    Args:
        overrides: `data.KEY=VALUE`, how `settings.data` is read: data.columns.question=ask.

    Raises:
        LinnetError: a model without tokenizer, a run that holds nothing out or whose data changed, an empty source.
        UsageError: settings that do not go together.
    """
    if not models:
        raise UsageError("Name at least one model.")
    if overrides and not settings.data:
        raise UsageError(f"{overrides[0]} says how --data is read: add --data SOURCE.")
    subjects = [_subject(name) for name in models]
    first = next((subject.trained for subject in subjects if subject.trained), None)
    materials = []
    for subject in subjects:
        trained = subject.trained or first
        if settings.data:
            materials.append(_other_data(subject, trained, settings=settings, overrides=overrides, say=say))
        else:
            materials.append(_own_split(subject, trained))
    if len({m.data.model_dump_json(exclude={"prepared", "workers", "engine"}) for m in materials}) > 1:
        say("The models are measured on different data; to compare them, name one source with --data.")
    pairs = zip(subjects, materials, strict=True)
    return [_report(subject, material, settings=settings, say=say) for subject, material in pairs]


def _subject(name: str) -> Subject:
    folder = resolve_model(name)
    run = RunFolder(folder.parent)
    return Subject(name, folder, _trained(run) if folder == run.model else None)


def _trained(run: RunFolder) -> Trained | None:
    """What the newest readable checkpoint says. Its weights are not read, and nothing is mended."""
    for step in reversed(saved_steps(run.checkpoints)):
        path = run.checkpoints / f"step-{step:08d}"
        try:
            known = files.read_manifest(path)["files"][STATE]["sha256"]
            if files.sha256_file(path / STATE) != known:
                continue
            state = json.loads((path / STATE).read_bytes())
        except (LinnetError, OSError):
            continue  # damaged, or just removed by a training that still runs
        recipe = build_recipe(state["recipe"], {}, where=str(path))
        return Trained(run.root, recipe, state["data"], state["choices"]["block_size"])
    return None


# -- on which text ---------------------------------------------------------------------------------------------------


def _own_split(subject: Subject, trained: Trained | None) -> Material:
    """What the run held out; for a model beside it the same text in that model's tokens."""
    if trained is None:
        raise LinnetError(f"{subject.name} is no run, so it holds nothing out: add --data SOURCE.")
    data, block_size = trained.recipe.data, _block_size(subject, trained)
    if subject.trained is None:
        recipe = _recipe(data.model_copy(update={"prepared": "auto"}))
        store = prepare_store(recipe, tokenizer_from=subject.folder, n_positions=block_size)
    else:
        store = _store_of_training(subject, trained)
    if store.validation is None:
        raise LinnetError(f"{trained.root} has no held-out split: add --data SOURCE.")
    return Material(store.validation, data, "held-out", block_size)


def _store_of_training(subject: Subject, trained: Trained) -> Store:
    """What the run was trained on, prepared again where it is gone; anything else is refused."""
    prepared, name = trained.recipe.data.prepared, trained.recipe.name
    for folder in Path("prepared").glob(f"{name}-*") if prepared == "auto" else [Path(prepared)]:
        with contextlib.suppress(LinnetError):
            if files.read_manifest(folder)["fingerprint"] == trained.data:
                return Store.open(folder)
    from_scratch = trained.recipe.model.init_from == SCRATCH
    try:
        store = prepare_store(
            trained.recipe,
            tokenizer_from=None if from_scratch else subject.folder,
            n_positions=None if from_scratch else read_config(subject.folder).n_positions,
        )
    except LinnetError as error:
        raise type(error)(
            f"What {trained.root} held out cannot be read: {error} Or add --data SOURCE."
        ) from error
    if store.fingerprint != trained.data:
        raise LinnetError(
            f"The data of {trained.root} (data.source={trained.recipe.data.source}) have changed since its training, "
            "so what it held out is not known: bring the old data back, or add --data SOURCE."
        )
    return store


def _other_data(
    subject: Subject,
    trained: Trained | None,
    *,
    settings: Settings,
    overrides: Sequence[str],
    say: Callable[[str], None],
) -> Material:
    """All of `settings.data`: nothing is held out or filtered, unless the overrides say so."""
    data = trained.recipe.data if trained else DataConfig()
    everything: dict[str, Any] = {"validation": 0.0, "max_rows": None, "filters": FiltersConfig()}
    update = {**everything, "drop": "", "keep": "", "prepared": "auto", "source": settings.data}
    data = data.model_copy(update=update | {"format": settings.format or data.format})
    recipe, block_size = _recipe(data, overrides=overrides), _block_size(subject, trained)
    try:
        store = prepare_store(recipe, tokenizer_from=subject.folder, n_positions=block_size)
    except LinnetError as error:  # The same sentence, with what was typed here.
        raise type(error)(str(error).replace("data.source", "--data")) from error
    for note in store.notes:
        say(note)
    return Material(store, recipe.data, "all", block_size)


def _recipe(data: DataConfig, *, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe that only prepares `data`, with the model's tokenizer."""
    typed = parse_overrides(overrides)
    for key in typed:
        if not key.startswith("data.") or key in ("data.source", "data.validation"):
            raise UsageError(
                f"{key} cannot be set here: eval takes keys that say how --data is read, such as data.columns.text."
            )
    values = {"name": "eval", "data": data.model_dump(exclude_none=True)}
    return build_recipe(values, typed, where="--data")


def _block_size(subject: Subject, trained: Trained | None) -> int:
    n_positions = read_config(subject.folder).n_positions
    return min(trained.block_size, n_positions) if trained else n_positions


# -- measuring -------------------------------------------------------------------------------------------------------


def _report(
    subject: Subject, material: Material, *, settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
    store, block_size, stride = material.store, material.block_size, None
    if store.format == "text":
        stride = min(settings.stride or max(1, block_size // 2), block_size)
    elif settings.stride is not None:
        raise UsageError(f"--stride is for the format text; {material.source} is read as {store.format}.")
    model = api.load(subject.folder, precision=settings.precision)
    limit = settings.limit_tokens or EVERYTHING
    with MeasuringProgress(f"{subject.name}: loss", min(store.pairs, limit), unit="tokens") as progress:
        score = measure(
            model.network,
            _batches(material, stride=stride, max_tokens=limit),
            byte_lengths=model.tokenizer.byte_lengths(),
            precision=settings.precision,
            observe=progress.update,
        )
        progress.total = score.tokens  # With --limit-tokens, rows stay whole.
    return {
        "model": subject.name,
        "data": material.source,
        "split": material.split,
        "format": store.format,
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "learned_tokens": score.learned_tokens,
        "bytes": score.bytes,
        "block_size": block_size,
        "stride": stride,
        "precision": settings.precision,
        **_answers(subject.name, model, material, settings=settings, say=say),
    }


def _batches(material: Material, *, stride: int | None, max_tokens: int) -> Iterator[Batch]:
    store, block_size = material.store, material.block_size
    rows = max(1, TOKENS_AT_ONCE // block_size)
    if stride is None:
        return validation_batches(store, block_size=block_size, batch_size=rows, max_tokens=max_tokens)
    return strided_batches(store, window=block_size, stride=stride, batch_size=rows, max_tokens=max_tokens)


def _answers(
    name: str, model: Model, material: Material, *, settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
    """What writing shows: the share of answers that end, and how good they are."""
    count = 0 if material.store.format in WITHOUT_QUESTIONS else settings.generate
    questions = choose_questions(material.store, tokenizer=model.tokenizer, count=count)
    if settings.metrics and (not questions or material.store.format == "lines"):
        raise LinnetError(
            f"{material.source}, read as {material.store.format}, has no questions, and --metric judges answers: "
            "leave it out, or set --format."
        )
    if not questions:
        return {"ended_share": None}
    written = []
    with MeasuringProgress(f"{name}: writing", len(questions), unit="answers") as progress:
        for answer in write_answers(
            model, questions, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature
        ):
            written.append(answer)
            progress.update(len(written))
    both = [(q.reference, a.text) for q, a in zip(questions, written, strict=True) if q.whole]
    are_summaries = material.store.format == "papers" and material.data.target == "abstract"
    return {
        "ended_share": sum(answer.ended for answer in written) / len(written),
        "answers": len(written),
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        **judge(both, metrics=settings.metrics, are_summaries=are_summaries, say=say),
    }
