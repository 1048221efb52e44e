"""The job of finetune_rows.py: weights, rows, and the size of Linnet's and TRL's packed rows.

Why    A step must learn as many tokens with every candidate, and each must see the same examples.
How    The Trainer goes once through so many examples as its steps take. Packed, they fill so many rows; block size and
       rows of a step are chosen so that these, too, are gone through once in as many steps.
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import SHAPES, all_fit, character_tokenizer, draw_text, write_weights
from turns import say

DATA = Path(__file__).parents[2] / "shared/data"
PROBED = 8  # examples of the first step, which all make alike
LONGEST = 500  # tokens of a made-up row, at most


def write_rows(work: Path, *, data: Path | None, vocabulary: int, count: int) -> None:
    """rows.jsonl, and probe.jsonl with its first ones."""
    if data is not None:
        with data.open(encoding="utf-8") as lines:
            rows = [line for line, _ in zip(lines, range(count), strict=False)]
        if len(rows) < count:
            sys.exit(f"{data} has {len(rows)} rows, {count} are needed; set less --rounds or --steps.")
    else:
        rows = made_up_rows(vocabulary, count)
    (work / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    (work / "probe.jsonl").write_text("".join(rows[:PROBED]), encoding="utf-8")


def made_up_rows(vocabulary: int, count: int) -> list[str]:
    """Questions and answers as long as those of GSM8K: 57 and 95 tokens on average, spread as log-normal."""
    draw, text, at = random.Random(1), draw_text(vocabulary, LONGEST * count), 0
    rows = []
    for _ in range(count):
        parts = {}
        for key, mean in (("question", 57), ("answer", 95)):
            length = min(LONGEST // 2, max(4, round(draw.lognormvariate(0, 0.45) * mean * 0.9)))
            parts[key] = text[at : at + length]
            at += length
        rows.append(json.dumps(parts) + "\n")
    return rows


def make_setup(
    model: str,
    *,
    data: Path | None,
    tokenizer: Path,
    batch: int,
    accumulate: int,
    steps: int,
    candidates: int,
    work: Path,
) -> Any:
    """Weights, rows, Linnet's prepared data of both, and the size of its rows; the peers' `Setup`."""
    from ours import open_quietly
    from peers import Setup

    from linnet.tokenizer import load_tokenizer

    weights = Path(model)
    if model in SHAPES:
        shape = SHAPES[model]
        own = character_tokenizer(shape["vocab_size"]) if data is None else load_tokenizer(str(tokenizer))
        shape = shape | {"n_positions": max(512, shape["n_positions"]), "vocab_size": own.vocab_size}
        weights = work / "weights"
        write_weights(weights, shape, tokenizer=own)
    examples = batch * accumulate
    vocabulary = SHAPES[model]["vocab_size"] if model in SHAPES else 0
    write_rows(work, data=data, vocabulary=vocabulary, count=steps * examples)
    setup = Setup(
        model=str(weights.resolve()),
        train=str(work / "rows.jsonl"),
        prepared=str(work / "rows"),
        block_size=0,
        rows=0,
        examples=batch,
        epochs=1.0,
        steps=steps,
        config={},
        accumulate=accumulate,
    )
    session = open_quietly("math", keys_of(setup), folder=work / "run")
    block_size, rows = choose_rows(session.store, steps=steps, n_positions=session.model.config.n_positions)
    shape = {key: getattr(session.model.config, key) for key in SHAPES["gpt2"]}
    if not all_fit(shape, count=candidates, tokens=max(rows * block_size, batch * session.store.longest)):
        sys.exit(f"The free memory does not hold {candidates} trainings of {model}: name fewer with --only.")
    say(
        f"{len(session.store.examples) - 1} examples; a step has {examples} of them, "
        f"or {rows} rows of {block_size} tokens"
    )
    config = session.recipe.train.model_dump()
    return replace(setup, block_size=block_size, rows=rows, config=config)


def choose_rows(store: Any, *, steps: int, n_positions: int) -> tuple[int, int]:
    """Block size and rows of a step with which one pass over the packed data takes `steps` steps, or nearly so."""
    from linnet.data.batches import Batches

    least = -(-store.longest // 32) * 32
    sizes = range(least, n_positions + 1, 32) or [n_positions]
    found = []
    for size in sizes:
        packed = Batches(store, block_size=size, batch_size=1, seed=1).rows_per_epoch
        rows = max(1, round(packed / steps))
        found.append((abs(packed / rows / steps - 1), size, rows))
    return min(found)[1:]


def probe_of(setup: Any, *, work: Path) -> Any:
    """The job of one step with all of the first examples."""
    from linnet.data.batches import Batches
    from linnet.data.store import Store

    probe = replace(
        setup,
        train=str(work / "probe.jsonl"),
        prepared=str(work / "probe"),
        steps=1,
        accumulate=1,
        examples=PROBED,
    )
    from ours import open_quietly

    open_quietly("math", keys_of(probe), folder=work / "run")  # prepares it
    rows = Batches(
        Store.open(work / "probe"), block_size=setup.block_size, batch_size=1, seed=1
    ).rows_per_epoch
    return replace(probe, rows=rows)


def keys_of(setup: Any) -> dict[str, Any]:
    """The keys of `linnet train math`; rows of 0 tokens are not chosen yet."""
    rows = {"train.block_size": setup.block_size, "train.batch_size": setup.rows} if setup.rows else {}
    return {
        "data.source": setup.train,
        "data.validation": 0.0,
        "data.prepared": setup.prepared,
        "model.init_from": setup.model,
        "train.steps": setup.steps,
        **rows,
    }
