"""Four ways to train on answers: ours, transformers' `Trainer` twice, TRL's packing; and a fifth that goes wrong.

What   `TRAININGS[name](setup, seed, folder)` trains from the same weights on the same token ids, saves the model into
       `folder` and says what it computed.
Why    The peers read what Linnet has prepared: id for id, -100 for what is only read. Learning rate and its course,
       optimizer, precision, gradient clipping and epochs are ours too, so what differs is how rows become batches.
How    `Peer` lays our optimizer and schedule over a Trainer of theirs and counts what goes into each step. Imports of
       what may be missing stay inside the functions; benchmarks/answers.py runs each in a process of its own.
"""

import gc
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

import linnet
from linnet.config import TrainConfig
from linnet.data.store import Store
from linnet.device import choose_device, choose_precision, memory_gb
from linnet.training.optim import ADAM_BETAS, ADAM_EPSILON
from linnet.training.schedule import learning_rate

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
READ_ONLY = -100  # the label of a token that is not learned, in transformers


@dataclass(frozen=True)
class Setup:
    """What all trainings share. `rows` of `block_size` tokens hold about `examples` examples: a step."""

    model: str
    train: str
    prepared: str
    block_size: int
    rows: int
    examples: int
    epochs: float
    steps: int | None
    config: dict[str, Any]
    """The recipe's train part."""
    precision: str = "auto"
    """Of the peers: "fp32", "bf16", or what is fastest on this machine."""
    accumulate: int = 1
    """Batches of a step, for the peers."""


@dataclass(frozen=True)
class Figures:
    """What one training computed. Tokens are counted over all steps."""

    steps: int
    seconds: float
    """From the first step to the last; loading, preparing and saving are left out."""
    real_tokens: int
    computed_tokens: int
    """With padding."""
    learned_tokens: int
    memory_gb: float
    """Peak: of the allocator on a card, else of the process."""
    note: str = ""


def train_linnet(setup: Setup, seed: int, folder: Path) -> Figures:
    """`linnet train math`: packed rows, nothing held out, the last weights."""
    length = {"epochs": setup.epochs} if setup.steps is None else {"steps": setup.steps}
    run = linnet.train(
        "math",
        run=folder / "run",
        data={"source": setup.train, "validation": 0.0, "prepared": setup.prepared},
        model={"init_from": setup.model},
        train={**length, "seed": seed, "batch_size": setup.rows, "save_every": 1_000_000},
        sample={"max_new_tokens": 0},
    )
    shutil.move(run.dir / "model", folder / "model")  # A plain folder, measured like the others.
    last = run.metrics()[-1]
    choices = json.loads((run.dir / "environment.json").read_bytes())["starts"][-1]["choices"]
    return Figures(
        steps=last["step"],
        seconds=last["time_s"],
        real_tokens=last["tokens"],
        computed_tokens=last["step"] * setup.rows * setup.block_size,
        learned_tokens=last["learned_tokens"],
        memory_gb=last["memory_gb"],
        note=choices["precision"]["value"],
    )


def train_trainer(setup: Setup, seed: int, folder: Path) -> Figures:
    """transformers' Trainer: random batches, each padded to its longest example."""
    return make_trainer(setup, seed, folder).run(folder, setup)


def train_grouped(setup: Setup, seed: int, folder: Path) -> Figures:
    """transformers' Trainer with examples of similar length in a batch."""
    return make_grouped(setup, seed, folder).run(folder, setup)


def train_by_id(setup: Setup, seed: int, folder: Path) -> Figures:
    """The common way: pad_token = eos_token, and every label of that id is masked as padding.

    So no end of an answer is ever learned. Questions are: this collator makes its labels from the ids.
    """
    trainer = make_trainer(setup, seed, folder, collator=_padding_by_id_collator, columns=("input_ids",))
    return trainer.run(folder, setup)


def train_trl(setup: Setup, seed: int, folder: Path) -> Figures:
    """TRL's SFTTrainer with packing."""
    return make_trl(setup, seed, folder).run(folder, setup)


TRAININGS: dict[str, Callable[[Setup, int, Path], Figures]] = {
    "linnet": train_linnet,
    "trainer": train_trainer,
    "trainer-grouped": train_grouped,
    "trl-packing": train_trl,
    "trainer-padding-by-id": train_by_id,
}


def train_seeds(name: str, setup: Setup, *, seeds: int, folder: Path) -> list[dict[str, Any]]:
    """Train with seeds 1, 2, ...; models in folder/SEED/model, the figures of each in order."""
    rows = []
    for seed in range(1, seeds + 1):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        own = folder / str(seed)
        own.mkdir(parents=True)
        rows.append(asdict(TRAININGS[name](setup, seed, own)))
    return rows


# -- theirs, with our settings ---------------------------------------------------------------------------------------


def _peer(base: type) -> Any:
    """A Trainer class with our optimizer and schedule, that counts its tokens."""

    class Peer(base):
        def __init__(self, *, config: TrainConfig, **options: Any) -> None:
            self.ours = config
            self.counts: list[tuple[Any, int, Any]] = []  # real, computed and learned tokens of each forward
            self.losses: list[Any] = []  # its part of the step's mean loss
            self.started = 0.0
            super().__init__(**options)

        def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
            weights = [p for p in self.model.parameters() if p.requires_grad]
            groups = [
                {"params": [p for p in weights if p.ndim >= 2], "weight_decay": self.ours.weight_decay},
                {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
            ]
            rate = self.ours.learning_rate
            self.optimizer = torch.optim.AdamW(
                groups, lr=rate, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True
            )
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def rate(step: int) -> float:
                return learning_rate(
                    min(step, num_training_steps - 1),  # after the last update it is asked once more
                    steps=num_training_steps,
                    peak=1.0,
                    warmup_steps=self.ours.warmup_steps,
                    schedule=self.ours.schedule,
                )

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
            return self.lr_scheduler

        def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            self.started = self.started or time.perf_counter()
            ids, mask = inputs["input_ids"], inputs.get("attention_mask")
            real = ids.numel() if mask is None else mask.sum()
            self.counts.append((real, ids.numel(), (inputs["labels"] != READ_ONLY).sum()))
            loss = super().training_step(model, inputs, *rest, **options)
            self.losses.append(loss)
            return loss

        def run(self, folder: Path, setup: Setup) -> Figures:
            self.train()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - self.started
            peak = memory_gb(choose_device().value)
            self.model.save_pretrained(folder / "model")
            for name in TOKENIZER_FILES:
                if (Path(setup.model) / name).is_file():
                    shutil.copy(Path(setup.model) / name, folder / "model")
            real, computed, learned = (
                sum(int(n) for n in column) for column in zip(*self.counts, strict=True)
            )
            attention = getattr(self.model.config, "_attn_implementation", "")
            note = f"{'bf16' if self.args.bf16 else 'fp32'}, attention {attention}"
            return Figures(self.state.global_step, seconds, real, computed, learned, peak, note)

    return Peer


def make_trainer(
    setup: Setup,
    seed: int,
    folder: Path,
    *,
    collator: Callable[[Any], Any] | None = None,
    arguments: dict[str, Any] | None = None,
    columns: tuple[str, ...] = ("input_ids", "labels"),
) -> Any:
    """transformers' Trainer, ready to train."""
    from transformers import Trainer, TrainingArguments

    return _peer(Trainer)(
        model=_load(setup),
        args=TrainingArguments(
            **_arguments(setup, seed, folder, batch_size=setup.examples), **(arguments or {})
        ),
        train_dataset=_dataset(setup).select_columns(list(columns)),
        data_collator=(collator or _answers_collator)(_tokenizer(setup)),
        config=TrainConfig(**setup.config),
    )


def make_grouped(setup: Setup, seed: int, folder: Path) -> Any:
    """transformers' Trainer that puts examples of similar length into a batch, ready to train."""
    from transformers import TrainingArguments

    is_new = "train_sampling_strategy" in {field.name for field in fields(TrainingArguments)}
    grouped = {"train_sampling_strategy": "group_by_length"} if is_new else {"group_by_length": True}
    return make_trainer(setup, seed, folder, arguments=grouped)


def make_trl(setup: Setup, seed: int, folder: Path) -> Any:
    """TRL's SFTTrainer with packing into rows as long as ours, ready to train.

    Its rows hold ids, ours (input, target) pairs, one less for each example.
    """
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **_arguments(setup, seed, folder, batch_size=setup.rows),
        packing=True,
        max_length=setup.block_size + 1,
        gradient_checkpointing=False,  # TRL's default recomputes the forward pass: slower, less memory
    )
    return _peer(SFTTrainer)(
        model=_load(setup),
        args=arguments,
        train_dataset=_dataset(setup),
        processing_class=_tokenizer(setup),
        config=TrainConfig(**setup.config),
    )


def _answers_collator(tokenizer: Any) -> Any:
    from transformers import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, padding="longest", label_pad_token_id=READ_ONLY)


def _padding_by_id_collator(tokenizer: Any) -> Any:
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def _arguments(setup: Setup, seed: int, folder: Path, *, batch_size: int) -> dict[str, Any]:
    device = choose_device().value
    return {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": setup.accumulate,
        "num_train_epochs": setup.epochs,
        "max_steps": setup.steps or -1,
        "max_grad_norm": setup.config["grad_clip"] or math.inf,
        "bf16": choose_precision(setup.precision, device).value == "bf16",
        "use_cpu": device == "cpu",
        "seed": seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _load(setup: Setup) -> Any:
    """The initial weights as transformers reads them; fp32, as ours, whatever they are saved in."""
    from transformers import AutoModelForCausalLM

    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # as model.dropout of the recipe
    return AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32, **off)


def _tokenizer(setup: Setup) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setup.model)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _dataset(setup: Setup) -> Any:
    """Our examples: input_ids, and labels with -100 for what is only read."""
    from datasets import Dataset

    store = Store.open(Path(setup.prepared))
    ids = store.tokens.astype(np.int64)
    labels = np.where(store.learn == 1, ids, READ_ONLY)
    cuts = store.examples[1:-1]
    columns = {"input_ids": np.split(ids, cuts), "labels": np.split(labels, cuts)}
    return Dataset.from_dict({name: [row.tolist() for row in rows] for name, rows in columns.items()})
