"""From a recipe to what a training needs: initial weights, token store, network, plan.

Why    Between the recipe's words and the stages' arguments lie decisions that belong to neither: whose tokenizer, which
       folder, whose shape.
How    One function for each decision; `linnet.opening` calls them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from linnet import files
from linnet.config import Recipe
from linnet.data.batches import Batches
from linnet.data.store import Store
from linnet.device import Choice
from linnet.errors import LinnetError
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import load_model
from linnet.preparing import LARGEST_WINDOW, SCRATCH
from linnet.track.card.lineage import origin_of
from linnet.training.plan import Plan, choose_block_size, make_plan


def parent_of(recipe: Recipe, *, initial: Path | None) -> dict[str, Any]:
    """What the initial weights are, for environment.json: their hashes, and their own parents as far as known."""
    if initial is None:
        return {"init_from": SCRATCH}
    weights = sorted(initial.glob("*.safetensors"))
    return {
        "init_from": recipe.model.init_from,
        "folder": str(initial),
        "sha256": {path.name: files.sha256_file(path) for path in weights},
        **origin_of(initial),
    }


def choose_model(recipe: Recipe, *, store: Store, given: GPT2Config | None) -> GPT2Config:
    """The network's shape: `given` by the initial model, or the recipe's with the data's vocabulary."""
    wanted = recipe.model
    if given is not None:
        if given.vocab_size < store.vocab_size:
            raise LinnetError(
                f"tokenizer.name={recipe.tokenizer.name} has {store.vocab_size:,} entries, the model "
                f"{wanted.init_from} has {given.vocab_size:,}; set tokenizer.name=auto to take the model's own."
            )
        return replace(given, dropout=wanted.dropout)
    positions = wanted.n_positions
    if positions == "auto" and isinstance(recipe.train.block_size, int):
        positions = recipe.train.block_size
    elif positions == "auto":
        positions = choose_block(recipe, store=store, n_positions=LARGEST_WINDOW).value
    return GPT2Config(
        vocab_size=store.vocab_size,
        n_positions=positions,
        n_embd=wanted.n_embd,
        n_layer=wanted.n_layer,
        n_head=wanted.n_head,
        dropout=wanted.dropout,
        initializer_range=wanted.initializer_range,
    )


def choose_block(recipe: Recipe, *, store: Store, n_positions: int) -> Choice:
    """Tokens in a row for this data and model."""
    return choose_block_size(
        recipe.train.block_size,
        longest=None if store.format == "text" else store.longest,
        pairs=store.pairs,
        n_positions=n_positions,
    )


def plan_run(recipe: Recipe, *, store: Store, model_config: GPT2Config, kept: Mapping[str, Any]) -> Plan:
    """The plan of a run; `kept` is what "auto" became when the run began (empty for a new one)."""

    def count_rows(block_size: int) -> int:
        return Batches(store, block_size=block_size, batch_size=1, seed=recipe.train.seed).rows_per_epoch

    return make_plan(
        recipe.train,
        block_size=choose_block(recipe, store=store, n_positions=model_config.n_positions),
        count_rows=count_rows,
        n_layer=model_config.n_layer,
        n_embd=model_config.n_embd,
        parameters=model_config.parameters,
        kept=kept,
    )


def build_model(config: GPT2Config, *, recipe: Recipe, initial: Path | None) -> GPT2:
    """The initial weights: read from a model, or drawn with the recipe's seed."""
    if initial is not None:
        return load_model(initial, dropout=recipe.model.dropout)
    return GPT2(config, seed=recipe.train.seed)
