"""One start of a training: puts the stages together and hands them to the loop.

What   `open_session` finds where a run stands, settles the recipe, prepares the data, makes the plan, builds or
       restores model and optimizer. A `Session` then holds all of it, and the callables through which the loop looks.
Why    The loop knows nothing of folders, the stages know nothing of each other. Somebody has to introduce them.
How    `api.train` opens a session under the run's lock and calls `loop.train(session.state, ...)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnet import files
from linnet.config import Recipe
from linnet.data.batches import Batches, validation_batches
from linnet.data.formats import template_of
from linnet.data.store import Store
from linnet.errors import LinnetError
from linnet.evaluate.loss import held_out_loss
from linnet.generate.engine import Model
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.loss import next_token_loss
from linnet.model.pretrained import read_config, save_model
from linnet.preparing import SCRATCH, initial_model, prepare_store
from linnet.recipe import build_recipe, read_recipe_values, recipe_names
from linnet.run import LENGTH, Change, RunFolder, compare_recipes, refuse_changes
from linnet.setup import build_model, choose_model, parent_of, plan_run
from linnet.tokenizer import Tokenizer
from linnet.track.metrics import RowFile, cut_back
from linnet.track.progress import TrainingProgress
from linnet.training.checkpoint import Checkpoint, load_newest, prune, save_checkpoint
from linnet.training.loop import Looks, TrainState, is_finished
from linnet.training.optim import make_optimizer
from linnet.training.plan import Plan


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


class Session:
    """A training that is ready to start, or to go on."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        folder: RunFolder,
        store: Store,
        plan: Plan,
        state: TrainState,
        parent: Mapping[str, Any],
        changes: list[Change],
        check_stop: Callable[[], None],
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.store = store
        self.plan = plan
        self.state = state
        self.tokenizer: Tokenizer = store.tokenizer()
        self.progress = TrainingProgress(plan.steps, done=state.step)
        self.batches = Batches(
            store, block_size=plan.block_size, batch_size=plan.batch_size, seed=recipe.train.seed
        )
        self._parent = parent
        self._changes = changes
        self._check_stop = check_stop
        self._saved: tuple[int, bool] | None = None
        self._metrics: RowFile | None = None
        self._samples: RowFile | None = None
        self._left_out: set[str] = set()  # prompts that cannot be sampled
        self.template = template_of(recipe.data)
        self._writer = Model(self.model, self.tokenizer, template=self.template, reads=recipe.data.reads)

    @property
    def model(self) -> GPT2:
        assert isinstance(self.state.model, GPT2)
        return self.state.model

    def looks(self) -> Looks:
        """The loop's windows to the world."""
        return Looks(
            evaluate=self.evaluate,
            sample=self.sample,
            log=self.log,
            save=self.save,
            say=self.progress.say,
            check_stop=self._check_stop,
        )

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Write recipe.toml and environment.json, and cut the rows back to what the checkpoint knows."""
        sizes: Mapping[str, int] = checkpoint.state["row_bytes"] if checkpoint else {}
        for path in (self.folder.metrics, self.folder.samples):
            cut_back(path, sizes.get(path.stem, 0))
        self._metrics, self._samples = RowFile(self.folder.metrics), RowFile(self.folder.samples)
        self.folder.write_recipe(self.recipe)
        self.folder.write_environment(
            self.plan,
            parent=self._parent,
            changes=self._changes,
            step=self.state.step,
        )

    def close(self) -> None:
        """Close the rows' files and leave the progress line standing."""
        for rows in (self._metrics, self._samples):
            if rows is not None:
                rows.close()
        self.progress.close()

    def evaluate(self) -> tuple[float, int] | None:
        """Held-out loss over at most `eval_tokens` tokens, always the same ones."""
        if self.store.validation is None:
            return None
        batches = validation_batches(
            self.store.validation,
            block_size=self.plan.block_size,
            batch_size=self.plan.micro_batch_size,
            max_tokens=self.recipe.train.eval_tokens,
        )
        return held_out_loss(
            self.model,
            batches,
            loss=next_token_loss,
            device=self.plan.device,
            precision=self.plan.precision,
            check_stop=self._check_stop,
        )

    def sample(self, step: int) -> None:
        """Write down what the model makes of the recipe's prompts; always with the same seed.

        A stop between two prompts writes none of them: the resumed run samples this step again.
        """
        settings = self.recipe.sample
        if settings.max_new_tokens == 0:
            return
        texts = []
        for prompt in settings.prompts:
            self._check_stop()
            try:
                text = self._writer.generate(
                    prompt,
                    max_new_tokens=settings.max_new_tokens,
                    temperature=settings.temperature,
                    seed=self.recipe.train.seed,
                )
            except LinnetError as error:  # A character that a small vocabulary does not have.
                if prompt not in self._left_out:
                    self.progress.say(f"  sample.prompts: {json.dumps(prompt)} is left out. {error}")
                    self._left_out.add(prompt)
                continue
            texts.append((prompt, text))
        assert self._samples is not None
        for prompt, text in texts:
            self._samples.append({"step": step, "prompt": prompt, "text": text})
            shown = f"{prompt} -> {text}" if self.template else prompt + text
            self.progress.say(f"  it writes: {json.dumps(shown, ensure_ascii=False)[:200]}")

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl, shown on the progress line as well."""
        assert self._metrics is not None
        self._metrics.append(row)
        self.progress.row(row)

    def save(self, state: TrainState, is_best: bool) -> None:
        """A checkpoint; model/ too where this is the best, or where nothing tells which is.

        model/ comes first: after a crash between the two the steps are repeated and end in the same model/.
        The other way round the checkpoint would count as saved and model/ would never be written.
        """
        if self._saved == (state.step, state.evaluated):
            return
        assert self._metrics is not None
        assert self._samples is not None
        self._metrics.sync()
        self._samples.sync()
        best_step = state.best_step or None
        if is_best or best_step is None:
            with files.new_folder(self.folder.model) as new:
                save_model(new, self.model, tokenizer=self.tokenizer, template=self.template)
        save_checkpoint(
            self.folder.checkpoints,
            step=state.step,
            weights=self.model.state_dict(),
            optimizer=state.optimizer.state(),
            state={
                "loop": state.numbers(),
                "row_bytes": {"metrics": self._metrics.size, "samples": self._samples.size},
                "recipe": self.recipe.model_dump(exclude_none=True),
                "model_config": vars(self.model.config),
                "data": self.store.fingerprint,
                "tokenizer": self.tokenizer.fingerprint,
                "choices": {key: choice.value for key, choice in self.plan.choices.items()},
                "parent": self._parent,
                "finished": state.evaluated and is_finished(state, config=self.recipe.train, plan=self.plan),
            },
        )
        prune(self.folder.checkpoints, newest=state.step, keep=self.recipe.train.keep, best_step=best_step)
        self._saved = (state.step, state.evaluated)


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
    files.repair_folder(folder.model)
    return load_newest(folder.checkpoints, say=say)


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
    check_stop: Callable[[], None],
    say: Callable[[str], None],
) -> Session:
    """Everything that happens before the first step; nothing in the run folder is touched yet.

    A run that goes on needs neither its parent nor the hub: weights, shape and tokenizer are its own.
    """
    recipe = request.settle(recipe_of(checkpoint) if checkpoint else None)
    from_scratch = recipe.model.init_from == SCRATCH
    initial = None if checkpoint else initial_model(recipe)
    tokenizer_from = None if from_scratch else folder.model if checkpoint else initial
    trained = GPT2Config(**checkpoint.state["model_config"]) if checkpoint else None
    given = read_config(initial) if initial else None if from_scratch else trained
    store = prepare_store(
        recipe, tokenizer_from=tokenizer_from, n_positions=given.n_positions if given else None
    )
    for note in store.notes:
        say(note)
    model_config = choose_model(recipe, store=store, given=given)
    kept = checkpoint.state["choices"] if checkpoint else {}
    plan = plan_run(recipe, store=store, model_config=model_config, kept=kept)
    changes: list[Change] = []
    if checkpoint is not None and trained is not None:
        changes = changes_since(checkpoint, recipe=recipe, store=store)
        refuse_changes(changes, steps=(kept["steps"], plan.steps), root=folder.root, accepted=accept_changes)
        refuse_other_shape(trained, model_config, root=folder.root)
        for change in changes_of_machine(kept, plan):
            say(f"{change}.")
    model = build_model(model_config, recipe=recipe, initial=initial)
    model.to(plan.device)
    optimizer = make_optimizer(
        model,
        name=recipe.train.optimizer,
        weight_decay=recipe.train.weight_decay,
        momentum=recipe.train.momentum,
    )
    state = TrainState(model=model, optimizer=optimizer)
    if checkpoint is not None:
        model.load_state_dict(checkpoint.weights)
        optimizer.load_state(checkpoint.optimizer)
        state.load_numbers(checkpoint.state["loop"])
        if any(change.key in LENGTH for change in changes):
            state.stale_evaluations = 0  # A longer run is asked for: patience begins anew.
    if recipe.train.compile:
        model.compile()
    return Session(
        recipe=recipe,
        folder=folder,
        store=store,
        plan=plan,
        state=state,
        parent=checkpoint.state["parent"] if checkpoint else parent_of(recipe, initial=initial),
        changes=changes,
        check_stop=check_stop,
    )


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


def changes_of_machine(kept: Mapping[str, Any], plan: Plan) -> list[Change]:
    """Device and precision, where this machine (or an accepted change) gives others than before."""
    new = {key: plan.choices[key].value for key in ("device", "precision")}
    return [Change(key, kept[key], value) for key, value in new.items() if kept[key] != value]
