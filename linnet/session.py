"""One start of a training: what the loop trains, and the windows through which it looks.

What   A `Session` holds recipe, data, plan, model and optimizer of a run that is ready to start or to go on, and gives
       the loop its `Looks`: evaluate, sample, log, save.
Why    The loop knows nothing of folders, the stages know nothing of each other. Somebody has to introduce them.
How    `linnet.opening.open_session` makes it; `api.train` hands its parts to `loop.train`. Whatever only shows the run
       (sinks, report, card, mirror) hangs on `log` and `save`, and cannot stop it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from linnet import files
from linnet.config import Recipe
from linnet.data.batches import Batches, share_of, validation_batches
from linnet.data.formats import template_of
from linnet.data.store import Store
from linnet.device import autocast
from linnet.errors import LinnetError
from linnet.evaluate.loss import held_out_loss
from linnet.generate.engine import Model
from linnet.mirror import Mirror
from linnet.model.adapter import save_adapter
from linnet.model.gpt2 import GPT2
from linnet.model.lora import merged
from linnet.model.loss import next_token_loss
from linnet.model.pretrained import load_model, save_model
from linnet.run import Change, RunFolder
from linnet.setup import frozen_base
from linnet.tokenizer import Tokenizer
from linnet.track.card import write_card
from linnet.track.metrics import RowFile, cut_back
from linnet.track.progress import TrainingProgress
from linnet.track.report import LiveReport
from linnet.track.sinks import Sinks
from linnet.training.checkpoint import Checkpoint, prune, save_checkpoint
from linnet.training.loop import Looks, TrainState, is_finished
from linnet.training.plan import Plan
from linnet.training.ranks import Ranks
from linnet.training.stop import StopSignals


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
        mirror: Mirror | None,
        stop: StopSignals,
        ranks: Ranks,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.store = store
        self.plan = plan
        self.state = state
        self.tokenizer: Tokenizer = store.tokenizer()
        self.progress = TrainingProgress(plan.steps, done=state.step)
        self.batches = Batches(
            store,
            block_size=plan.block_size,
            batch_size=plan.batch_size,
            seed=recipe.train.seed,
            rank=ranks.rank,
            world=ranks.world,
        )
        self._parent = parent
        self._changes = changes
        self._stop = stop
        self._ranks = ranks
        self._mirror = mirror
        self._sinks: Sinks | None = None
        self._report: LiveReport | None = None
        self._saved: tuple[int, bool] | None = None
        self._metrics: RowFile | None = None
        self._samples: RowFile | None = None
        self._left_out: set[str] = set()  # prompts that cannot be sampled
        self._failed: set[str] = set()  # what only shows the run, and could not
        self._closing = False
        self.template = template_of(recipe.data)
        self._writer = Model(self.model, self.tokenizer, template=self.template, reads=recipe.data.reads)
        if mirror is not None:
            mirror.say = self.progress.say

    @property
    def model(self) -> GPT2:
        assert isinstance(self.state.model, GPT2)
        return self.state.model

    def looks(self) -> Looks:
        """The loop's windows to the world; a process that is not the first takes part and writes nothing."""
        first = self._ranks.rank == 0
        return Looks(
            evaluate=self.evaluate,
            sample=self.sample if first else self._write_along,
            log=self.log if first else lambda row: None,
            save=self.save if first else self._hand_over,
            say=self.progress.say if first else lambda line: None,
            check_stop=self._stop.check,
            name_rows=self.batches.name_rows,
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
            data=self.store.facts(),
            changes=self._changes,
            step=self.state.step,
        )
        with self._harmless("report.html"):
            self._report = LiveReport(self.folder.root)
        if self.recipe.track.sinks:
            self._sinks = Sinks(
                self.folder.root,
                names=self.recipe.track.sinks,
                step=self.state.step,
                say=self.progress.say,
                wait_s=self.recipe.track.wait,
            )

    def close(self) -> None:
        """Close the rows' files, leave the progress line standing and bring what shows the run up to date."""
        self._closing = True
        for rows in (self._metrics, self._samples):
            if rows is not None:
                rows.close()
        self.progress.close()
        if self._report is not None:
            with self._harmless("report.html"):
                self._report.close()
        with self._harmless("The card"):
            write_card(self.folder.root, self.folder.model)
        if self._sinks is not None:
            self._sinks.close()
        if self._mirror is not None:
            with self._harmless("The mirror"):
                self._mirror.close(stopped=lambda: self._stop.received > 0)

    def evaluate(self) -> tuple[float, int] | None:
        """Held-out loss over at most `eval_tokens` tokens, always the same ones."""
        if self.store.validation is None:
            return None
        rows = self.plan.micro_batch_size
        batches = validation_batches(
            self.store.validation,
            block_size=self.plan.block_size,
            batch_size=min(rows, self.state.most_rows or rows),  # As after a resume, which plans no more.
            max_tokens=self.recipe.train.eval_tokens,
        )
        return held_out_loss(
            self.model,
            share_of(batches, rank=self._ranks.rank, world=self._ranks.world),
            loss=next_token_loss,
            device=self.plan.device,
            precision=self.plan.precision,
            check_stop=self._stop.check_together,
            add_up=self._ranks.sum_,
        )

    def sample(self, step: int) -> None:
        """Write down what the model makes of the recipe's prompts; always with the same seed.

        A stop between two prompts writes none of them: the resumed run samples this step again.
        """
        texts, left_out = self._write()
        for prompt, why in left_out.items():
            if prompt not in self._left_out:
                self.progress.say(f"  sample.prompts: {json.dumps(prompt)} is left out. {why}")
                self._left_out.add(prompt)
        assert self._samples is not None
        for prompt, text in texts:
            self._samples.append({"step": step, "prompt": prompt, "text": text})
            shown = f"{prompt} -> {text}" if self.template else prompt + text
            self.progress.say(f"  it writes: {json.dumps(shown, ensure_ascii=False)[:200]}")

    def _write(self) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """(prompt, text) of each sample, and why prompts were left out; all ranks write the same at the same time."""
        settings = self.recipe.sample
        texts: list[tuple[str, str]] = []
        left_out: dict[str, str] = {}
        if settings.max_new_tokens == 0:
            return texts, left_out
        # A frozen network, and what offload leaves on the card, may lie there in 16 bits amid norms in fp32.
        in_16_bits = self.recipe.model.lora.rank or self.plan.offload == "on"
        precision = self.plan.precision if in_16_bits else "fp32"
        for prompt in settings.prompts:
            self._stop.check_together()
            try:
                with autocast(precision, self.plan.device):
                    text = self._writer.generate(
                        prompt,
                        max_new_tokens=settings.max_new_tokens,
                        temperature=settings.temperature,
                        seed=self.recipe.train.seed,
                    )
            except LinnetError as error:  # A character that a small vocabulary does not have.
                left_out[prompt] = str(error)
                continue
            texts.append((prompt, text))
        return texts, left_out

    def _write_along(self, step: int) -> None:
        """`sample` on another process than the first, which needs this one's share of the model."""
        self._write()

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl, shown on the progress line as well."""
        assert self._metrics is not None
        self._metrics.append(row)
        self.progress.row(row)
        if self._sinks is not None:
            self._sinks.look()
        if "validation_loss" in row and self._report is not None:
            with self._harmless("report.html"):
                self._report.offer()
        if self._mirror is not None:
            with self._harmless("The mirror"):
                self._mirror.look()

    def save(self, state: TrainState, is_best: bool) -> None:
        """A checkpoint; model/ too where this is the best, or where nothing tells which is.

        model/ comes first: after a crash between the two the steps are repeated and end in the same model/.
        The other way round the checkpoint would count as saved and model/ would never be written.
        """
        if self._saved == (state.step, state.evaluated):
            return
        assert self._metrics is not None
        assert self._samples is not None
        weights, moments = self._ranks.whole(state.weights()), self._ranks.whole(state.optimizer.state())
        self._metrics.sync()
        self._samples.sync()
        best_step = state.best_step or None
        if is_best or best_step is None:
            self._save_adapter(weights)
            with files.new_folder(self.folder.model) as new:
                self._save_model(new, weights)
                with self._harmless("The card"):
                    write_card(self.folder.root, new)
        save_checkpoint(
            self.folder.checkpoints,
            step=state.step,
            weights=weights,
            optimizer=moments,
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
        self._offer(state.step)
        prune(self.folder.checkpoints, newest=state.step, keep=self.recipe.train.keep, best_step=best_step)
        self._saved = (state.step, state.evaluated)

    def _hand_over(self, state: TrainState, is_best: bool) -> None:
        """`save` on another process than the first: gives it the shares of weights and moments that lie here."""
        if self._ranks.lockstep and self._saved != (state.step, state.evaluated):
            self._ranks.whole(state.weights())
            self._ranks.whole(state.optimizer.state())
            self._saved = (state.step, state.evaluated)

    def _save_model(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """model/ over `weights`: all in fp32. With LoRA the base with the adapters added, weight after weight."""
        network = GPT2.without_weights(self.model.config)
        lora = self.recipe.model.lora
        weight = weights.__getitem__
        if lora.rank:
            base = load_model(frozen_base(self._parent, root=self.folder.root), mapped=True)
            weight = merged(base, weights, factor=lora.alpha / lora.rank)
        save_model(folder, network, tokenizer=self.tokenizer, template=self.template, weight=weight)

    def _save_adapter(self, weights: Mapping[str, Tensor]) -> None:
        """adapter/, of a run with LoRA."""
        lora = self.recipe.model.lora
        if lora.rank:
            base = self._parent["init_from"] if "hub" in self._parent else self._parent["folder"]
            with files.new_folder(self.folder.adapter) as new:
                save_adapter(
                    new,
                    weights,
                    rank=lora.rank,
                    alpha=lora.alpha,
                    targets=lora.targets,
                    base_model=base,
                )

    def _offer(self, step: int) -> None:
        if self._mirror is not None:
            with self._harmless("The mirror"):
                self._mirror.offer(step)

    @contextlib.contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        """What only shows the run must never end it, whatever goes wrong; it is said once."""
        try:
            yield
        except Exception as error:
            if what not in self._failed:
                goes_on = "" if self._closing else ", the training goes on"
                self.progress.say(f"{what} cannot be written{goes_on}: {error}")
            self._failed.add(what)
