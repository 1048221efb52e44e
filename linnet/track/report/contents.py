"""What a run's page says besides its curves, read from the run folder's files.

What   `contents_of` gives the headline numbers, samples, data, machine, choices, starts and recipe of a run, as text.
Why    The template only lays out. What a file lacks, or holds in a strange form, costs its part of the page and is
       said at the top; the page always appears.
How    Each part is made by a function of its own that may fail; `_part` catches it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from linnet.errors import LinnetError
from linnet.track.metrics import scan
from linnet.track.progress import duration
from linnet.track.runs import RunSummary
from linnet.track.table import short_count

MOST_EVALUATIONS = 60  # of which samples are shown: the first, the last and those evenly between
MOST_CHARACTERS = 4_000  # of a sample
MOST_SOURCES = 5
CHANGES_BY_ITSELF = "memory_free_bytes"  # between two starts on the same machine
CONTINUED = ("text", "lines")  # formats without turns: the sample goes on where the prompt ends

Part = TypeVar("Part")


class Number(NamedTuple):
    """A headline number."""

    name: str
    value: str
    note: str = ""


class Sample(NamedTuple):
    """What the model wrote."""

    prompt: str
    text: str


class Evaluation(NamedTuple):
    """The samples of one evaluation."""

    step: int
    samples: list[Sample]


class Choice(NamedTuple):
    """What "auto" became."""

    key: str
    value: str
    reason: str


class Start(NamedTuple):
    """One start of the run; `differences` to the one before, a sentence each."""

    step: int
    time: str
    command: str
    differences: list[str]


@dataclass
class Data:
    """What was trained on."""

    lines: list[tuple[str, str]]
    counts: list[tuple[str, str, str]]
    """What is counted, to train on, held out."""
    left_out: list[tuple[str, str]]
    """Rule, count."""


@dataclass
class Contents:
    """All of it; an empty part is not shown."""

    run: RunSummary
    numbers: list[Number]
    evaluations: list[Evaluation] = field(default_factory=list)
    """Newest first."""
    evaluations_in_all: int = 0
    continued: bool = True
    """Whether a sample's text goes on where its prompt ends."""
    data: Data | None = None
    machine: list[tuple[str, str]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    recipe: str = ""


def contents_of(root: Path, run: RunSummary) -> Contents:
    """Read the run folder `root`. What cannot be read or understood is added to `run.problems`."""
    contents = Contents(run, numbers_of(run))
    contents.evaluations, contents.evaluations_in_all = evaluations_of(root, run)
    contents.continued = is_continued(root)
    contents.recipe = _part(run, "recipe.toml", lambda: _recipe(root)) or ""
    environment = _part(run, "environment.json", lambda: _environment(root)) or {}
    if "data" in environment:
        data = environment["data"]
        contents.data = _part(run, "environment.json: data", lambda: _data(data))
    if environment.get("starts"):
        starts = environment["starts"]
        contents.machine = _part(run, "environment.json: machine", lambda: _machine(starts[-1])) or []
        contents.choices = _part(run, "environment.json: choices", lambda: _choices(starts[-1])) or []
        contents.starts = _part(run, "environment.json: starts", lambda: _starts(starts)) or []
    return contents


def numbers_of(run: RunSummary) -> list[Number]:
    """The headline numbers, as far as they are known."""
    numbers = [Number("steps", f"{run.step:,}", f"of {run.steps:,}" if run.steps else "")]
    if run.validation_loss is not None:
        numbers.append(
            Number("best held-out loss", f"{run.validation_loss:.3f}", f"at step {run.best_step:,}")
        )
    if run.training_loss is not None:
        numbers.append(Number("training loss", f"{run.training_loss:.3f}", "recent mean"))
    if run.tokens is not None:
        numbers.append(Number("tokens", short_count(run.tokens), f"{run.tokens:,}"))
    if run.time_s:
        numbers.append(Number("training time", duration(run.time_s), "steps only"))
    if run.tokens_per_s:
        numbers.append(Number("tokens/s", f"{run.tokens_per_s:,.0f}", "mean"))
    if run.parameters:
        numbers.append(Number("parameters", short_count(run.parameters), f"{run.parameters:,}"))
    return numbers


def evaluations_of(root: Path, run: RunSummary) -> tuple[list[Evaluation], int]:
    """The samples, newest first, and how many evaluations have some; at most 60 are returned."""
    try:
        rows, damaged = scan(root / "samples.jsonl")
    except LinnetError as error:
        run.problems.append(str(error))
        return [], 0
    if damaged:
        run.problems.append(f"samples.jsonl:{damaged[0]}: {len(damaged)} damaged, left out")
    found: dict[int, list[Sample]] = {}
    for row in rows:
        step, prompt, text = row.get("step"), row.get("prompt"), row.get("text")
        if isinstance(step, int) and isinstance(prompt, str) and isinstance(text, str):
            found.setdefault(step, []).append(Sample(_excerpt(prompt), _excerpt(text)))
    steps = sorted(found)
    if len(steps) > MOST_EVALUATIONS:
        last = len(steps) - 1
        steps = [steps[round(i * last / (MOST_EVALUATIONS - 1))] for i in range(MOST_EVALUATIONS)]
    return [Evaluation(step, found[step]) for step in reversed(steps)], len(found)


def is_continued(root: Path) -> bool:
    """Whether a sample's text goes on where its prompt ends, and is no answer to it; True where nothing is known."""
    try:
        return _environment(root)["data"]["format"] in CONTINUED
    except (OSError, ValueError, LookupError, TypeError):
        return True


def _part(run: RunSummary, what: str, make: Callable[[], Part]) -> Part | None:
    """A part of the page, or None and a problem where its file is not as it should be."""
    try:
        return make()
    except FileNotFoundError:
        return None  # Missing files are named by the summary, or belong to a run that has just begun.
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if not any(problem.startswith(what) for problem in run.problems):
            run.problems.append(f"{what} cannot be shown ({type(error).__name__}: {error})")
        return None


def _recipe(root: Path) -> str:
    return (root / "recipe.toml").read_text(encoding="utf-8")


def _environment(root: Path) -> dict[str, Any]:
    value = json.loads((root / "environment.json").read_bytes())
    if not isinstance(value, dict):
        raise TypeError("no JSON object")
    return value


def _data(facts: Mapping[str, Any]) -> Data:
    """From `Store.facts()`."""
    counts, held_out = facts["counts"], facts["held_out_counts"] or {}
    rows = [
        (key.replace("_", " "), f"{counts[key]:,}", f"{held_out[key]:,}" if held_out else "")
        for key in ("rows", "examples", "tokens", "learned_tokens", "bytes")
    ]
    if facts["format"] == "text":  # Continuous text has no rows of its own.
        rows = [row for row in rows if row[0] not in ("rows", "examples")]
    lines = [
        ("format", str(facts["format"])),
        ("sources", "\n".join(_sources(facts["sources"]))),
        ("prepared in", str(facts["folder"])),
        ("vocabulary", f"{facts['vocab_size']:,}"),
        ("fingerprint", str(facts["fingerprint"])[:16]),
    ]
    left_out = [(f"dropped: {rule}", f"{count:,}") for rule, count in facts["dropped"].items()]
    left_out += [(f"changed: {rule}", f"{count:,}") for rule, count in facts["changed"].items()]
    left_out += [("quarantined: cannot be used", f"{facts['quarantined']:,}")] if facts["quarantined"] else []
    return Data(lines, rows, left_out)


def _sources(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files, or where they are many their folders."""
    paths = [str(source["path"]) for source in sources]
    if len(paths) > MOST_SOURCES:
        folders = Counter(path.rpartition("/")[0] for path in paths)
        paths = [f"{folder}/ ({count:,} files)" for folder, count in folders.most_common()]
    more = len(paths) - MOST_SOURCES
    return [*paths[:MOST_SOURCES], f"and {more:,} more folders"] if more > 0 else paths


def _machine(start: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = dict(start["machine"])
    free = machine.pop(CHANGES_BY_ITSELF, None)
    lines = [(str(key), str(value)) for key, value in machine.items() if value not in (None, "none")]
    return lines + ([("memory free", f"{free / 1e9:.1f} GB")] if isinstance(free, int) else [])


def _choices(start: Mapping[str, Any]) -> list[Choice]:
    return [
        Choice(key, str(choice["value"]), str(choice["reason"])) for key, choice in start["choices"].items()
    ]


def _starts(starts: list[Any]) -> list[Start]:
    """All starts; each but the first with what differs from the one before."""
    found = []
    for number, start in enumerate(starts):
        differences = [_difference(c["key"], c["old"], c["new"]) for c in start["changes"]]
        if number:
            before = starts[number - 1]
            # Memory changes by itself, and a choice follows from a key that has just been named.
            said = {
                CHANGES_BY_ITSELF,
                "memory",
                *(str(c["key"]).rpartition(".")[2] for c in start["changes"]),
            }
            for old, new in (
                (before["machine"], start["machine"]),
                (_values(before["choices"]), _values(start["choices"])),
            ):
                differences += [
                    _difference(key, old.get(key), new[key])
                    for key in new
                    if old.get(key) != new[key] and key not in said
                ]
        time = str(start["time"])[:16].replace("T", " ")
        found.append(Start(int(start["step"]), time, str(start["command"]), differences))
    return found


def _values(choices: Mapping[str, Any]) -> dict[str, Any]:
    return {key: choice["value"] for key, choice in choices.items()}


def _difference(key: str, old: object, new: object) -> str:
    return f"{key}: {'not set' if old is None else old} → {'not set' if new is None else new}"


def _excerpt(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
