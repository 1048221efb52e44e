"""`linnet prepare`, and what a training needs before it has a network: initial weights found, data prepared.

Why    Preparing needs no torch, whose import takes 2 s, as long as tokenizing 100 MB does.
How    `linnet.setup` and `linnet.opening` go on from here.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linnet.config import Recipe
from linnet.data.prepare import prepare as prepare_data
from linnet.data.store import Store
from linnet.errors import DiskError, LinnetError
from linnet.model.resolve import resolve_model
from linnet.recipe import build_recipe, parse_overrides, read_recipe_values
from linnet.tokenizer import Tokenizer, load_tokenizer
from linnet.track.progress import BytesProgress

SCRATCH = "scratch"
LARGEST_WINDOW = 1024  # n_positions="auto" with block_size="auto": GPT-2's own.


def prepare(recipe: str, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Build a recipe's token store, or find it ready; returns its counts."""
    settled = build_recipe(read_recipe_values(recipe), parse_overrides(overrides), where=recipe)
    initial = initial_model(settled)
    positions = _positions(initial) if initial else None
    store = prepare_store(settled, tokenizer_from=initial, n_positions=positions)
    for note in store.notes:
        print(note, file=sys.stderr)
    return {"folder": str(store.folder), **store.manifest["counts"]}


def initial_model(recipe: Recipe) -> Path | None:
    """The folder of the initial weights; None from scratch."""
    if recipe.model.init_from == SCRATCH:
        return None
    try:
        return resolve_model(recipe.model.init_from)
    except DiskError:
        raise
    except LinnetError as error:
        raise LinnetError(
            f"model.init_from: {error} Or start from nothing with model.init_from=scratch."
        ) from error


def _positions(initial: Path) -> int:
    """n_positions of the initial weights. What looks odd is left to `read_config`, which has a sentence for it."""
    try:
        config = json.loads((initial / "config.json").read_text(encoding="utf-8"))
        if (
            config["model_type"] == "gpt2"
            and type(config["n_positions"]) is int
            and config["n_positions"] > 0
        ):
            return int(config["n_positions"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from linnet.model.pretrained import read_config

    return read_config(initial).n_positions


def prepare_store(recipe: Recipe, *, tokenizer_from: Path | None, n_positions: int | None) -> Store:
    """The recipe's token store, built where it is missing or stale.

    Args:
        tokenizer_from: the folder whose tokenizer `tokenizer.name = "auto"` means; None: a BPE is trained.
        n_positions: the initial model's window; None from scratch.
    """
    if not recipe.data.source:
        raise LinnetError("data.source is not set: add data.source=FILE, a folder or a glob.")
    tokenizer = None
    if recipe.tokenizer.name == "auto" and tokenizer_from is not None:
        tokenizer = load_tokenizer(str(tokenizer_from))
    size = window_size(recipe, n_positions=n_positions)
    folder = prepared_folder(recipe, tokenizer=tokenizer, size=size)
    with BytesProgress("reading") as progress:
        return prepare_data(
            recipe.data,
            recipe.tokenizer,
            tokenizer_from=tokenizer,
            folder=folder,
            size=size,
            progress=progress,
        )


def prepared_folder(recipe: Recipe, *, tokenizer: Tokenizer | None, size: int) -> Path:
    """Where the store of a recipe lies, or will lie; `tokenizer` is the initial model's, where that is taken."""
    if recipe.data.prepared != "auto":
        return Path(recipe.data.prepared)
    # What does not change the bytes of a store is not in its name.
    data = recipe.data.model_dump(exclude={"prepared", "max_bad", "workers", "engine"})
    parts = [data, recipe.tokenizer.model_dump(), size]
    identity = json.dumps([*parts, tokenizer.fingerprint if tokenizer else ""], sort_keys=True)
    return Path("prepared") / f"{recipe.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def window_size(recipe: Recipe, *, n_positions: int | None) -> int:
    """Most ids of an example: the pairs of a row (block_size, or all that the model can see) and one more."""
    block = recipe.train.block_size
    if n_positions is None:
        n_positions = LARGEST_WINDOW if recipe.model.n_positions == "auto" else recipe.model.n_positions
    return 1 + (n_positions if block == "auto" else min(block, n_positions))
