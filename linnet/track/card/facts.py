"""What the files of a run say about its model: every figure of the model card.

What   `read_facts(root, model)` gives `Facts`; a figure is None where the files do not tell it.
Why    A card says what was measured. Whatever stands in it must be found again in the run folder, and a file that is
       missing or damaged costs its lines, never the card.
How    recipe.toml, environment.json, metrics.jsonl, samples.jsonl, and of the model config.json. No torch.
       Values are taken by `_at`, which gives None for whatever has another shape than it should.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from linnet.errors import LinnetError
from linnet.track.metrics import Row, read_metrics, read_rows
from linnet.track.plots import Curve
from linnet.track.runs import LAST_STEPS, has_diverged, own_path

CHAT_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Facts:
    """The contents of a run's files; {} and [] where there are none that can be read."""

    name: str
    """Of the run folder."""
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    rows: list[Row]
    samples: list[Row]
    has_template: bool
    """The model reads turns: there is a chat template."""

    # -- the training --------------------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> int | None:
        """Finished steps."""
        return next(
            (row["step"] for row in reversed(self.rows) if "loss" in row and _whole(row, "step")), None
        )

    @cached_property
    def best(self) -> tuple[int, float] | None:
        """(step, held-out loss) of the model that is kept, where an evaluation chose it."""
        best = Curve.of(self.rows).best
        return (int(best[0]), best[1]) if best and best[0] > 0 else None

    @cached_property
    def model_step(self) -> int | None:
        """The step whose weights the model has: the best one, else the last."""
        return self.best[0] if self.best else self.steps

    @property
    def loss_before(self) -> float | None:
        """Held-out loss before the first step."""
        found = (_number(row, "validation_loss") for row in self.rows if row.get("step") == 0)
        return next((loss for loss in found if loss is not None), None)

    @property
    def held_out_tokens(self) -> int | None:
        """Tokens on which the held-out loss was measured."""
        found = (_whole(row, "validation_tokens") for row in reversed(self.rows))
        return next((count for count in found if count is not None), None)

    @property
    def last_losses(self) -> list[float]:
        """Those of the last 20 logged steps; NaN where it was not finite."""
        steps = [row for row in self.rows if "loss" in row][-LAST_STEPS:]
        return [math.nan if (loss := _number(row, "loss")) is None else loss for row in steps]

    @property
    def training_loss(self) -> float | None:
        """The mean of those that are finite."""
        losses = [loss for loss in self.last_losses if math.isfinite(loss)]
        return sum(losses) / len(losses) if losses else None

    @property
    def diverged(self) -> bool:
        return has_diverged(self.rows)

    @property
    def seconds(self) -> float | None:
        """Training time over all starts; evaluation, saving and stops left out."""
        return max((time for row in self.rows if (time := _number(row, "time_s"))), default=None)

    @property
    def tokens(self) -> int | None:
        """Tokens read in training, repetitions counted."""
        return max((count for row in self.rows if (count := _whole(row, "tokens"))), default=None)

    @property
    def epochs(self) -> float | None:
        """Passes over the training data: tokens read / tokens that have one before them in their example."""
        tokens, examples = self.data_count("tokens"), self.data_count("examples")
        if self.tokens is None or tokens is None or examples is None or tokens <= examples:
            return None
        return self.tokens / (tokens - examples)

    # -- what environment.json says ------------------------------------------------------------------------------------

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        return _mappings(_at(self.environment, "starts"))

    def choice(self, key: str) -> str | None:
        """What "auto" became, at the last start: `batch_size`, `block_size`, ..."""
        value = _at(self.starts[-1], "choices", key, "value") if self.starts else None
        return str(value) if isinstance(value, str | int) else None

    def each_choice(self, key: str) -> list[str]:
        """The same over all starts, each value once."""
        values = (_at(start, "choices", key, "value") for start in self.starts)
        return list(dict.fromkeys(value for value in values if isinstance(value, str)))

    @property
    def hardware(self) -> list[str]:
        """The card or the processor of each start, each once."""
        return list(
            dict.fromkeys(name for start in self.starts if (name := _hardware(_at(start, "machine"))))
        )

    def version(self, package: str) -> str | None:
        """Of `linnet`, `torch` or `python`, at the last start."""
        value = _at(self.starts[-1], "machine", package) if self.starts else None
        return value if isinstance(value, str) else None

    @property
    def changed_keys(self) -> list[str]:
        """Keys of the recipe that were changed between two starts."""
        changes = (change for start in self.starts for change in _mappings(_at(start, "changes")))
        return list(dict.fromkeys(key for change in changes if isinstance(key := _at(change, "key"), str)))

    def data_count(self, key: str) -> int | None:
        """Of the training data: `rows`, `examples`, `tokens`, `learned_tokens`."""
        return _whole(_at(self.environment, "data", "counts"), key)

    def held_out_count(self, key: str) -> int | None:
        return _whole(_at(self.environment, "data", "held_out_counts"), key)

    @property
    def dropped(self) -> dict[str, int]:
        """Rule -> rows that it left out, and those that could not be read."""
        rules = _at(self.environment, "data", "dropped")
        names = rules if isinstance(rules, Mapping) else {}
        dropped = {rule: count for rule in names if (count := _whole(rules, rule))}
        bad = _whole(_at(self.environment, "data"), "quarantined")
        return dropped | ({"rows that cannot be read": bad} if bad else {})

    @property
    def data_sets(self) -> list[str]:
        """Names on the hub of the data sets that were read."""
        paths = [source.get("path") for source in _mappings(_at(self.environment, "data", "sources"))]
        found = [
            re.match(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)/.", path) for path in paths if isinstance(path, str)
        ]
        return list(dict.fromkeys(match[1] for match in found if match))

    # -- what recipe.toml and config.json say --------------------------------------------------------------------------

    def key(self, part: str, name: str) -> Any:
        """A key of the recipe; None where it is not known."""
        return _at(self.recipe, part, name)

    @property
    def recipe_name(self) -> str | None:
        name = _at(self.recipe, "name")
        return name if isinstance(name, str) and name else None

    def shape(self, key: str) -> int | None:
        """`n_layer`, `n_head`, `n_embd`, `n_positions`, `vocab_size`."""
        return _whole(self.config, key)

    @property
    def parameters(self) -> int | None:
        """Of a GPT-2 with its head tied to wte: V E + P E, 12 E^2 + 13 E for each block, 2 E for the last norm."""
        sizes = [self.shape(key) for key in ("vocab_size", "n_positions", "n_layer", "n_embd")]
        known = [size for size in sizes if size is not None]
        if len(known) < 4:
            return None
        vocabulary, positions, layers, width = known
        return (vocabulary + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width

    @property
    def adapters(self) -> Mapping[str, Any] | None:
        """The keys of model.lora; None where the whole model was trained."""
        lora = self.key("model", "lora")
        return lora if isinstance(lora, Mapping) and _whole(lora, "rank") else None

    @property
    def trained_parameters(self) -> int | None:
        """Of the adapters: rank * (inputs + outputs) for each matrix that has one; None without adapters."""
        width, layers = self.shape("n_embd"), self.shape("n_layer")
        if self.adapters is None or width is None or layers is None:
            return None
        # In units of E: q, k, v from 1 to 3; both projections, 1 to 1 and 4 to 1; the MLP's first, 1 to 4.
        sides = {"c_attn": 4, "c_proj": 2 + 5, "c_fc": 5}
        both = sum(sides.get(name, 0) for name in set(texts(self.adapters.get("targets"))))
        return int(self.adapters["rank"]) * layers * width * both

    @cached_property
    def sample_step(self) -> int | None:
        """The last step up to the model's own at which samples were written; not step 0, before the training."""
        steps = [step for row in self._whole_samples if (step := _whole(row, "step")) is not None]
        return max((step for step in steps if 0 < step <= (self.model_step or 0)), default=None)

    @property
    def best_samples(self) -> list[tuple[str, str]]:
        """(prompt, text) of that step."""
        return [
            (row["prompt"], row["text"]) for row in self._whole_samples if row.get("step") == self.sample_step
        ]

    @property
    def _whole_samples(self) -> list[Row]:
        return [
            row for row in self.samples if all(isinstance(row.get(key), str) for key in ("prompt", "text"))
        ]


def read_facts(root: Path, model: Path) -> Facts:
    """Everything that the run `root` and the folder `model` with its weights tell."""
    rows: list[Row] = []
    samples: list[Row] = []
    with contextlib.suppress(LinnetError):
        rows = read_metrics(root / "metrics.jsonl")
    with contextlib.suppress(LinnetError):
        samples = read_rows(root / "samples.jsonl")
    recipe: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        recipe = tomllib.loads((root / "recipe.toml").read_text(encoding="utf-8"))
    return Facts(
        name=own_path(root).name,
        recipe=recipe,
        environment=_read_json(root / "environment.json"),
        config=_read_json(model / "config.json"),
        rows=rows,
        samples=samples,
        has_template=(model / CHAT_TEMPLATE).is_file(),
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _hardware(machine: object) -> str | None:
    """The card's name, or the processor's and how many threads it had."""
    card, processor, threads = (_at(machine, key) for key in ("cuda", "cpu", "threads"))
    if isinstance(card, str) and card != "none":
        return card
    if not isinstance(processor, str):
        return None
    if not isinstance(threads, int):
        return f"{processor} (CPU)"
    return f"{processor} (CPU, {threads} {'thread' if threads == 1 else 'threads'})"


def _at(value: Any, *keys: str) -> Any:
    """The value below these keys; None where something on the way is no mapping or lacks the key."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _number(value: object, key: str) -> float | None:
    found = _at(value, key)
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return float(found) if is_number else None


def _whole(value: object, key: str) -> int | None:
    found = _at(value, key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _mappings(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list; [] for anything else."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def texts(value: object) -> Iterator[str]:
    """The texts in a key that may be one text or a list of them."""
    yield from (
        one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one
    )
