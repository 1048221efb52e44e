"""From a recipe to what a training needs: initial weights, token store, network, plan.

Why    Between the recipe's words and the stages' arguments lie decisions that belong to neither: whose tokenizer, which
       folder, whose shape.
How    One function for each decision; `linnet.opening` calls them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from linnet import files
from linnet.config import Recipe
from linnet.data.batches import Batches
from linnet.data.store import Store
from linnet.device import PRODUCTS, Choice, Machine, this_machine
from linnet.errors import LinnetError
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.lora import add_adapters
from linnet.model.pretrained import load_model
from linnet.model.recompute import recomputed
from linnet.model.resolve import resolve_model
from linnet.preparing import LARGEST_WINDOW, SCRATCH
from linnet.track.card.lineage import origin_of
from linnet.training.host import HostOptimizer
from linnet.training.loop import TrainState
from linnet.training.optim import make_optimizer
from linnet.training.plan import Plan, choose_block_size, make_plan
from linnet.training.ranks import Ranks
from linnet.training.shards import choose_parallel


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


def frozen_base(parent: Mapping[str, Any], *, root: Path) -> Path:
    """The folder with the weights beside which the adapters of the run `root` are trained.

    The one it began with; where that is gone (another machine, say), what the name means now.

    Raises:
        LinnetError: there is none, or its weights are others than when the run began.
    """
    folder = Path(parent["folder"])
    try:
        folder = resolve_model(folder if folder.is_dir() else parent["init_from"])
    except LinnetError as error:
        raise LinnetError(
            f"{root} trains adapters beside {parent['init_from']}, which is gone: {error}"
        ) from error
    for name, sha256 in parent["sha256"].items():
        if not (folder / name).is_file() or files.sha256_file(folder / name) != sha256:
            raise LinnetError(
                f"{folder / name} is not what it was when {root} began to train adapters beside it; put the old file "
                f"back, or start another run with --run {root}-2."
            )
    return folder


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


def plan_run(
    recipe: Recipe,
    *,
    store: Store,
    model_config: GPT2Config,
    machine: Machine,
    kept: Mapping[str, Any],
    world: int = 1,
) -> Plan:
    """The plan of a run; `kept` is what "auto" became when the run began (empty for a new one).

    The same on each of `world` processes, if `machine` is.
    """

    def count_rows(block_size: int) -> int:
        return Batches(store, block_size=block_size, batch_size=1, seed=recipe.train.seed).rows_per_epoch

    parallel = Choice("ddp", "one process")
    if world > 1:
        parallel = choose_parallel(recipe, parameters=model_config.parameters, free=machine.free)
    plan = make_plan(
        recipe.train,
        block_size=choose_block(recipe, store=store, n_positions=model_config.n_positions),
        count_rows=count_rows,
        model=model_config,
        lora=recipe.model.lora,
        machine=machine,
        kept=kept,
        world=world,
        shares=world if parallel.value == "fsdp" else 1,
    )
    if world == 1:
        alone = {"parallel": Choice("off", "one process; torchrun starts several (docs/several.md)")}
        return replace(plan, choices=plan.choices | alone) if recipe.train.parallel == "fsdp" else plan
    processes = Choice(world, f"{plan.batch_size / world:g} rows of a step for each")
    choices = plan.choices | {"processes": processes, "parallel": parallel}
    return replace(plan, parallel=parallel.value, choices=choices)


def machine_of_all(precision: str, *, ranks: Ranks) -> Machine:
    """This machine, with the memory of the process that has least: then all plan alike."""
    machine = this_machine(precision)
    return replace(machine, free=ranks.least(machine.free // ranks.neighbours))


def with_rows(plan: Plan, most: int) -> Plan:
    """The plan of a run in which more than `most` rows at once did not fit."""
    rows = Choice(min(most, plan.micro_batch_size), "more at once did not fit into memory before")
    return replace(plan, micro_batch_size=rows.value, choices=plan.choices | {"micro_batch_size": rows})


def build_model(config: GPT2Config, *, recipe: Recipe, initial: Path | None, precision: str) -> GPT2:
    """The initial weights: read from a model, or drawn with the recipe's seed; with adapters where it asks for them."""
    if initial is None:
        return GPT2(config, seed=recipe.train.seed)
    lora = recipe.model.lora
    model = load_model(initial, dropout=recipe.model.dropout, mapped=lora.rank > 0)
    if lora.rank:
        add_adapters(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            targets=lora.targets,
            base=lora.base,
            dtype=PRODUCTS[precision],
            seed=recipe.train.seed,
        )
    return model


def build_state(model: GPT2, *, recipe: Recipe, plan: Plan) -> TrainState:
    """The optimizer, and the model on the plan's device; with offload the masters stay here."""
    if plan.activation_checkpointing == "on":
        model.run_block = recomputed
    if plan.offload == "on":
        host = HostOptimizer(
            model,
            device=plan.device,
            dtype=PRODUCTS[plan.precision],
            weight_decay=recipe.train.weight_decay,
        )
        return TrainState(model=model, optimizer=host, masters=host.masters)
    if plan.parallel != "fsdp":  # Shares lie there.
        model.to(plan.device)
    optimizer = make_optimizer(
        model,
        name=recipe.train.optimizer,
        weight_decay=recipe.train.weight_decay,
        momentum=recipe.train.momentum,
        embedding_rate=recipe.train.embedding_rate,
    )
    return TrainState(model=model, optimizer=optimizer)


def compile_blocks(model: GPT2, device: str, *, say: Callable[[str], None]) -> None:
    """torch.compile each block: all have one shape, so one is compiled and all use it.

    Where a tiny function cannot be compiled (no C++ compiler, no Triton), the blocks stay as they are, and that is
    said.
    """
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(4, device=device))
    except Exception as error:  # Of many kinds: the compiler's own, and those of the programs that it calls.
        reason = str(error).strip().partition("\n")[0]
        say(f"train.compile is left out, for torch.compile does not work on this machine: {reason}")
        return
    for block in model.h:
        block.compile()
