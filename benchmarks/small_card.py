"""GPT-2 124M on 50,488 questions and answers, three epochs, on a card of 4 GB.

What   Seconds, tokens a second and the largest memory of `linnet train math`, with the allocator held to 4 GB and the
       settings that the plan chooses for so much.
Why    It is the training of MathGPT2, and a small card is what people have.
How    python benchmarks/small_card.py [--data rows.jsonl] [--model FOLDER] [--steps 100] [--json]

       The whole command runs, from preparing to model/, in a folder that is thrown away. Without --data the rows are
       made up, about 150 tokens each. Without --model the weights are random. --steps
       ends it early, and says how long the whole would take. Without a card nothing is capped, and that is said.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs import SHAPES, character_tokenizer, write_weights
from rows_job import write_rows
from turns import figure, say

from linnet.training.memory import PROCESS

ROWS, EPOCHS = 50_488, 3
SHOWN = ("device", "precision", "batch_size", "micro_batch_size", "activation_checkpointing", "offload")
CARD = 4_000_000_000  # Bytes, CUDA's context among them.
# The cap must be set in the process that trains; Linnet then plans with what is left of it.
CAPPED = """
import sys, torch
from linnet.__main__ import main
if torch.cuda.is_available():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction({allowed} / total)
sys.exit(main())
"""


def train(words: list[str], *, folder: Path) -> float:
    """`linnet train WORDS` under the cap; returns its seconds. Its own lines go to stderr."""
    code = CAPPED.format(allowed=CARD - PROCESS["cuda"])
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, "train", "math", *words], cwd=folder, stdout=sys.stderr, check=True
    )
    return time.perf_counter() - started


def figures(run: Path, seconds: float) -> list[dict[str, Any]]:
    """From the run's own rows: speed, largest memory, and the seconds that all epochs take at this speed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "loss" in row]
    environment = json.loads((run / "environment.json").read_bytes())
    for key in SHOWN:
        choice = environment["starts"][0]["choices"][key]
        say(f"{key}: {choice['value']} ({choice['reason']})")
    last = steps[-1]
    whole = EPOCHS * environment["data"]["counts"]["tokens"] / last["tokens"] * last["time_s"]
    say(
        f"{last['step']} steps took {last['time_s']:.0f} s, the command {seconds:.0f} s; all epochs: {whole:.0f} s"
    )
    return [
        figure("linnet-small-card-speed", "tokens/s", [row["tokens_per_s"] for row in steps]),
        figure("linnet-small-card-memory", "GB", [max(row["memory_gb"] for row in steps)]),
        figure("linnet-small-card-all-epochs", "s", [whole]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="questions and answers as JSON lines")
    parser.add_argument("--model", default="gpt2", help=f"a folder, or random: {', '.join(SHAPES)}")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--steps", type=int, help="end after so many")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        say("There is no CUDA card here: nothing is capped, and the speed is this CPU's.")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        weights = Path(arguments.model).resolve()
        if arguments.model in SHAPES:
            shape, weights = SHAPES[arguments.model], folder / "weights"
            write_weights(weights, shape, tokenizer=character_tokenizer(shape["vocab_size"]))
        data = arguments.data
        vocabulary = SHAPES.get(arguments.model, SHAPES["gpt2"])["vocab_size"]
        write_rows(folder, data=data, vocabulary=vocabulary, count=arguments.rows)
        length = f"train.steps={arguments.steps}" if arguments.steps else f"train.epochs={EPOCHS}"
        words = ["data.source=rows.jsonl", f"model.init_from={weights}", "sample.max_new_tokens=0", length]
        words += ["--run", "run"]
        seconds = train(words, folder=folder)
        found = figures(folder / "run", seconds)
    if arguments.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
