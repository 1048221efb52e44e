"""From a request to a session: finds where a run stands and settles everything before the first step.

What   `newest_checkpoint` finds where a run stands; `open_session` settles the recipe, prepares the data, makes the
       plan, builds or restores model and optimizer.
Why    A run is started and gone on with by the same command. What differs, and what must not, is decided here.
How    `api.train` calls these in order, under the run's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from linnet import files
from linnet.config import LoraConfig, Recipe
from linnet.data.store import Store
from linnet.errors import LinnetError
from linnet.mirror import Mirror, unpack
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.lora import load_trained
from linnet.model.pretrained import read_config
from linnet.preparing import SCRATCH, initial_model, prepare_store
from linnet.recipe import build_recipe, read_recipe_values, recipe_names
from linnet.run import LENGTH, MEMORY, Change, RunFolder, compare_recipes, refuse_changes
from linnet.session import Session
from linnet.setup import (
    build_model,
    build_state,
    choose_model,
    compile_blocks,
    frozen_base,
    machine_of_all,
    parent_of,
    plan_run,
    with_rows,
)
from linnet.training.checkpoint import Checkpoint, load_newest
from linnet.training.loop import TrainState
from linnet.training.plan import Plan
from linnet.training.ranks import ALONE, Ranks
from linnet.training.shards import shard
from linnet.training.stop import StopSignals


@dataclass(frozen=True)
class Request:
    """What was asked for: a recipe and the keys laid over it."""

    recipe: str
    overrides: Mapping[str, Any]

    def settle(self, before: Recipe | None = None) -> Recipe:
        """The recipe that counts now.

        A recipe file is read anew. Of a built-in one, a run that goes on keeps its own values, `before`, so that
        `linnet train lines` needs no keys the second time and outlives a change of the built-in.
        """
        values = read_recipe_values(self.recipe)
        if before is not None and self.recipe in recipe_names():
            values = before.model_dump(exclude_none=True)
        return build_recipe(values, self.overrides, where=self.recipe)


def newest_checkpoint(
    folder: RunFolder, *, request: Request, say: Callable[[str], None]
) -> Checkpoint | None:
    """Where the run stands. Mends what a crash left.

    Raises:
        LinnetError: the folder holds the run of another recipe.
    """
    held, name = folder.recipe_values().get("name"), read_recipe_values(request.recipe)["name"]
    if held not in (None, name):
        raise LinnetError(
            f"{folder.root} holds a run of the recipe {held}, not {name}; give this one its own folder: "
            f"--run runs/{name}-2"
        )
    for replaced in (folder.model, folder.adapter):
        files.repair_folder(replaced)
    files.remove_leftovers(folder.root)
    checkpoint = load_newest(folder.checkpoints, say=say)
    if checkpoint is not None:
        unpack(folder.root, checkpoint.path)
    return checkpoint


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """The recipe that the run was trained with; keys that are newer than the checkpoint have their defaults."""
    return build_recipe(checkpoint.state["recipe"], {}, where=str(checkpoint.path))


def is_done(request: Request, checkpoint: Checkpoint) -> bool:
    """Whether the run is finished and nothing new is asked of it; looks at neither data nor model."""
    recipe = recipe_of(checkpoint)
    return bool(checkpoint.state["finished"]) and request.settle(recipe) == recipe


def open_session(
    request: Request,
    *,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    accept_changes: bool,
    mirror: Mirror | None,
    stop: StopSignals,
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> Session:
    """Everything that happens before the first step; nothing in the run folder is touched yet.

    A run that goes on needs neither its parent nor the hub: weights, shape and tokenizer are its own. Only adapters
    need the weights beside which they are trained.
    """
    recipe = request.settle(recipe_of(checkpoint) if checkpoint else None)
    from_scratch = recipe.model.init_from == SCRATCH
    with ranks.first_alone():  # It fetches from the hub what is missing.
        initial = None if checkpoint else initial_model(recipe)
    tokenizer_from = None if from_scratch else folder.model if checkpoint else initial
    trained = GPT2Config(**checkpoint.state["model_config"]) if checkpoint else None
    given = read_config(initial) if initial else None if from_scratch else trained
    store = open_store(
        recipe,
        tokenizer_from=tokenizer_from,
        n_positions=given.n_positions if given else None,
        ranks=ranks,
    )
    for note in store.notes:
        say(note)
    model_config = choose_model(recipe, store=store, given=given)
    kept = checkpoint.state["choices"] if checkpoint else {}
    machine = machine_of_all(recipe.train.precision, ranks=ranks)
    with ranks.first_alone():  # It packs the rows.
        plan = plan_run(
            recipe,
            store=store,
            model_config=model_config,
            machine=machine,
            kept=kept,
            world=ranks.world,
        )
    changes: list[Change] = []
    if checkpoint is not None:
        changes = accepted_changes(
            checkpoint,
            recipe=recipe,
            store=store,
            plan=plan,
            model_config=model_config,
            root=folder.root,
            accepted=accept_changes,
        )
        if recipe.model.lora.rank:
            initial = frozen_base(checkpoint.state["parent"], root=folder.root)
        for change in changes_of_machine(kept, plan):
            say(f"{change}.")
    state = ready_state(
        model_config, recipe=recipe, plan=plan, initial=initial, checkpoint=checkpoint, ranks=ranks
    )
    if checkpoint is not None:
        if any(change.key in LENGTH for change in changes):
            state.stale_evaluations = 0  # A longer run is asked for: patience begins anew.
        if kept["device"] != plan.device or any(change.key in MEMORY for change in changes):
            state.most_rows = None
        elif state.most_rows is not None:
            plan = with_rows(plan, state.most_rows)
    if recipe.train.compile:
        compile_blocks(cast(GPT2, state.model), plan.device, say=say)
    return Session(
        recipe=recipe,
        folder=folder,
        store=store,
        plan=plan,
        state=state,
        parent=checkpoint.state["parent"] if checkpoint else parent_of(recipe, initial=initial),
        changes=changes,
        mirror=mirror,
        stop=stop,
        ranks=ranks,
    )


def accepted_changes(
    checkpoint: Checkpoint,
    *,
    recipe: Recipe,
    store: Store,
    plan: Plan,
    model_config: GPT2Config,
    root: Path,
    accepted: bool,
) -> list[Change]:
    """What is not as it was when the run was saved.

    Raises:
        LinnetError: something that cannot change, or that was not `accepted`.
    """
    state = checkpoint.state
    changes = changes_since(checkpoint, recipe=recipe, store=store)
    # First what no --accept-changes allows, or the next message would advise it.
    refuse_other_adapters(recipe_of(checkpoint).model.lora, recipe.model.lora, root=root)
    refuse_changes(changes, steps=(state["choices"]["steps"], plan.steps), root=root, accepted=accepted)
    refuse_other_shape(GPT2Config(**state["model_config"]), model_config, root=root)
    return changes


def ready_state(
    config: GPT2Config,
    *,
    recipe: Recipe,
    plan: Plan,
    initial: Path | None,
    checkpoint: Checkpoint | None,
    ranks: Ranks,
) -> TrainState:
    """Network and optimizer as they were at the checkpoint, or before the first step; with fsdp in shares."""
    model = build_model(config, recipe=recipe, initial=initial, precision=plan.precision)
    if plan.parallel == "fsdp":
        if checkpoint is not None:
            load_trained(model, checkpoint.weights)
        shard(model, ranks)
    state = build_state(model, recipe=recipe, plan=plan)
    if checkpoint is not None:
        if plan.parallel != "fsdp":
            state.load_weights(checkpoint.weights)
        state.optimizer.load_state(checkpoint.optimizer)
        state.load_numbers(checkpoint.state["loop"])
    return state


def open_store(
    recipe: Recipe, *, tokenizer_from: Path | None, n_positions: int | None, ranks: Ranks
) -> Store:
    """The prepared data: the first process builds or finds them, the others open what it tells them.

    Raises:
        LinnetError: another machine has no such folder there, or one with other data.
    """
    if ranks.rank == 0:
        store = prepare_store(recipe, tokenizer_from=tokenizer_from, n_positions=n_positions)
        ranks.told(str(store.folder.absolute()))
    else:
        store = Store.open(Path(ranks.told("")), verify=False)
    if len(set(ranks.gather(store.fingerprint))) > 1:
        raise LinnetError(
            f"The machines have different data in {store.folder}; let data.prepared be a folder that all of them share."
        )
    return store


def changes_since(checkpoint: Checkpoint, *, recipe: Recipe, store: Store) -> list[Change]:
    """What differs from the run so far: keys of the recipe, the content of the data, the tokenizer."""
    state = checkpoint.state
    changes = compare_recipes(recipe_of(checkpoint), recipe)
    keys = {change.key for change in changes}
    # A tokenizer that is trained on the data changes with it; then the data is what to name.
    names = ("bpe", "char", "auto") if recipe.model.init_from == SCRATCH else ("bpe", "char")
    if recipe.tokenizer.name not in names and state["tokenizer"] != store.tokenizer().fingerprint:
        if "tokenizer.name" not in keys:
            changes.append(Change("tokenizer.name (its content)", "another one", recipe.tokenizer.name))
    elif state["data"] != store.fingerprint and not keys & {"data.source", "data.format", "tokenizer.name"}:
        changes.append(Change("data.source (its content)", state["data"][:12], store.fingerprint[:12]))
    return changes


def refuse_other_shape(trained: GPT2Config, wanted: GPT2Config, *, root: Path) -> None:
    """Weights of one shape cannot go on in another, whatever changes are accepted."""
    for key in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"):
        old, new = getattr(trained, key), getattr(wanted, key)
        if old != new:
            raise LinnetError(
                f"{root} cannot go on: {key} of its model is {old:,} and would be {new:,} now; go back to the old "
                f"value, or start another run with --run {root}-2."
            )


def refuse_other_adapters(trained: LoraConfig, wanted: LoraConfig, *, root: Path) -> None:
    """Adapters of one shape cannot go on in another, nor can whole weights in adapters."""
    if not trained.rank and not wanted.rank:
        return
    for key, old, new in (
        ("rank", trained.rank, wanted.rank),
        ("targets", sorted(set(trained.targets)), sorted(set(wanted.targets))),
    ):
        if old != new:
            raise LinnetError(
                f"{root} cannot go on: its model.lora.{key} is {old} and would be {new} now; go back to the old value, "
                f"or start another run with --run {root}-2."
            )


def changes_of_machine(kept: Mapping[str, Any], plan: Plan) -> list[Change]:
    """Device and precision, where this machine (or an accepted change) gives others than before."""
    new = {key: plan.choices[key].value for key in ("device", "precision")}
    return [Change(key, kept[key], value) for key, value in new.items() if kept[key] != value]
