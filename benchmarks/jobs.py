"""The job of train_throughput.py: a model, a text and the batches that all candidates read.

Why    Nothing but this repository is needed, and all start from the same weights and read the same tokens.
How    Weights are drawn here and saved in Hugging Face's form; the text is of characters that are one token each;
       Linnet prepares it, and the batches that its loop will ask for are written down for the others.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 512, "n_positions": 64, "n_layer": 2, "n_head": 2, "n_embd": 64},
    "small": {"vocab_size": 8192, "n_positions": 512, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "gpt2": {"vocab_size": 50257, "n_positions": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"vocab_size": 50257, "n_positions": 1024, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"vocab_size": 50257, "n_positions": 1024, "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"vocab_size": 50257, "n_positions": 1024, "n_layer": 48, "n_head": 25, "n_embd": 1600},
}
# Standard deviation of the first scores. With GPT-2's initial weights it is 0.55, and a wrong one hides in the loss.
LOGITS_SPREAD = 2.0
PROCESS_BYTES = 700 << 20  # a sleeping process without its model
ASCII = "\n" + "".join(map(chr, range(32, 127)))  # for the words around questions and answers
FIRST_CHARACTER = 0x20000  # the others, from here on


@dataclass(frozen=True)
class Job:
    """What all candidates share."""

    weights: str
    """A model folder in Hugging Face's form."""
    text: str
    batches: str
    """An .npy file [steps, 2, B, T]: inputs and targets of each step."""
    device: str
    rows: int
    block_size: int
    steps: int
    seed: int
    """Of Linnet's order of rows; `batches` has it."""
    learning_rate: float
    weight_decay: float
    grad_clip: float
    betas: tuple[float, float]
    nanogpt: str | None
    shape: dict[str, int]


def read_job(path: Path) -> Job:
    values = json.loads(path.read_bytes())
    return Job(**values | {"betas": tuple(values["betas"])})


def write_weights(folder: Path, shape: dict[str, int], *, tokenizer: Any) -> None:
    """A model with scores as spread as LOGITS_SPREAD."""
    from linnet.model.gpt2 import GPT2, GPT2Config
    from linnet.model.pretrained import save_model

    spread_of_weights = LOGITS_SPREAD / math.sqrt(shape["n_embd"])
    model = GPT2(GPT2Config(**shape, initializer_range=spread_of_weights), seed=1)
    folder.mkdir()
    save_model(folder, model, tokenizer=tokenizer)


def rare_characters(vocabulary: int) -> str:
    """All but ASCII and end-of-text."""
    return "".join(map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + vocabulary - len(ASCII) - 1)))


def character_tokenizer(vocabulary: int) -> Any:
    """One token for each character, `vocabulary` of them with end-of-text."""
    from linnet.tokenizer.make import train_char

    return train_char(iter([ASCII + rare_characters(vocabulary)]))


def draw_text(vocabulary: int, tokens: int) -> str:
    """Characters drawn by Zipf's law: as in real text some are in each row and most are rare."""
    import numpy as np

    characters = list(rare_characters(vocabulary))
    np.random.default_rng(2).shuffle(characters)  # frequent ones lie anywhere
    chances = 1 / np.arange(3.0, 3.0 + len(characters))
    return "".join(
        np.random.default_rng(1).choice(characters, size=tokens, p=chances / chances.sum()).tolist()
    )


def make_job(model: str, *, rows: int, block_size: int, steps: int, nanogpt: Path | None, work: Path) -> Job:
    """Write weights, text, Linnet's prepared data and the batches that it makes of them."""
    import numpy as np
    from ours import open_quietly

    from linnet.data.batches import Batches
    from linnet.device import choose_device
    from linnet.training.optim import ADAM_BETAS

    shape = SHAPES[model]
    block_size = min(block_size, shape["n_positions"])
    vocabulary = shape["vocab_size"]
    write_weights(work / "weights", shape, tokenizer=character_tokenizer(vocabulary))
    # 20 times what is read: so most orders have no row in which the text's end meets its beginning.
    text = draw_text(vocabulary, tokens=20 * steps * rows * block_size)
    (work / "text.txt").write_text(text, encoding="utf-8")
    job = Job(
        weights=str(work / "weights"),
        text=str(work / "text.txt"),
        batches=str(work / "batches.npy"),
        device=choose_device().value,
        rows=rows,
        block_size=block_size,
        steps=steps,
        seed=1,
        learning_rate=1e-4,
        weight_decay=0.1,
        grad_clip=1.0,
        betas=ADAM_BETAS,
        nanogpt=str(nanogpt.resolve()) if nanogpt else None,
        shape=shape,
    )
    session = open_quietly("text", keys_of(job), folder=work / "run")
    for seed in range(1, 1000):
        batches = Batches(session.store, block_size=block_size, batch_size=rows, seed=seed)
        found = [batches(step) for step in range(steps)]
        if all(batch.lengths == [[block_size]] * rows for batch in found):
            break
    else:
        raise AssertionError("no order of the rows leaves the text's end out")
    np.save(work / "batches.npy", np.stack([np.stack([b.ids.numpy(), b.targets.numpy()]) for b in found]))
    return replace(job, seed=seed)


def keys_of(job: Job) -> dict[str, Any]:
    """The keys of `linnet train text` that make its job that of the others."""
    return {
        "data.source": job.text,
        "data.validation": 0.0,
        "data.prepared": str(Path(job.text).with_name("prepared")),
        "model.init_from": job.weights,
        "train.steps": job.steps,
        "train.batch_size": job.rows,
        "train.block_size": job.block_size,
        "train.optimizer": "adamw",
        "train.learning_rate": job.learning_rate,
        "train.weight_decay": job.weight_decay,
        "train.grad_clip": job.grad_clip,
        "train.warmup_steps": 0,
        "train.schedule": "constant",
        "train.seed": job.seed,
    }


def all_fit(shape: dict[str, int], *, count: int, tokens: int) -> bool:
    """Whether the memory holds `count` candidates at once: all asleep but one, which trains on `tokens` at once."""
    from linnet.device import free_memory
    from linnet.model.gpt2 import GPT2Config

    n = GPT2Config(**shape).parameters
    asleep = PROCESS_BYTES + 12 * n  # weights and two moments
    logits, layers = 3 * 4 * shape["vocab_size"], 34 * 4 * shape["n_layer"] * shape["n_embd"]
    return count * asleep + 4 * n + tokens * (logits + layers) < free_memory()
