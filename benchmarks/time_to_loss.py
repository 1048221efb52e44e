"""Time to a loss: nanoGPT's own CPU example against `linnet train shakespeare-char`.

What  Both programs train a character model of Shakespeare (4 layers, 4 heads, 128 wide, windows of 64 characters,
      the first 90 % of the text) as whole processes from start to exit, in turn on the same machine. The loss
      of what each has saved is then computed here by one and the same rule.
Why   Steps per second say little: what counts is when a model of a given quality lies on the disk.
How   python benchmarks/time_to_loss.py --nanogpt ~/nanoGPT [--rounds 3] [--json]

      nanoGPT runs the command of its README ("i only have a macbook"); its separate data preparation is not
      counted, ours is part of `linnet train`. The rule: the last 10 % of the text in windows of 64 inputs that
      follow each other, no context carried over, every character counted once; fp32; mean in nats. nanoGPT's
      checkpoint is evaluated with its own model.py, ours is opened by transformers.
"""

import argparse
import json
import os
import pickle
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from nanogpt import load_nanogpt, mean_loss

WINDOW = 64
README_COMMAND = shlex.split(
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)


@dataclass(frozen=True)
class Outcome:
    """One whole process: seconds on the clock, seconds of all processors, loss of what it saved."""

    wall_s: float
    cpu_s: float
    loss: float


def run(command: Sequence[str], *, cwd: Path, log: Path) -> tuple[float, float]:
    """Run a command to its end: seconds on the clock and of processor time. Stops with its output if it fails."""
    with log.open("wb") as output:
        started, before = time.perf_counter(), os.times()
        code = subprocess.run(command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT).returncode
        wall, after = time.perf_counter() - started, os.times()
    if code != 0:
        sys.exit(f"{' '.join(command)}\nended with {code}:\n{log.read_text(errors='replace')[-3000:]}")
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def nanogpt_round(checkout: Path, folder: Path, *, python: str, held_out: str) -> Outcome:
    """nanoGPT's command, and the loss of its checkpoint by its own model."""
    command = [python, *README_COMMAND, f"--out_dir={folder}"]
    wall, cpu = run(command, cwd=checkout, log=folder / "log.txt")
    model = load_nanogpt(checkout, torch.load(folder / "ckpt.pt", map_location="cpu", weights_only=True))
    meta = pickle.loads((checkout / "data/shakespeare_char/meta.pkl").read_bytes())
    ids = [meta["stoi"][character] for character in held_out]
    # Without targets its forward gives the scores of the last position only.
    return Outcome(wall, cpu, mean_loss(lambda x: model(x, x)[0], torch.tensor(ids), window=WINDOW))


def linnet_round(text: Path, folder: Path, *, seed: int, overrides: Sequence[str], held_out: str) -> Outcome:
    """`linnet train shakespeare-char` with nothing prepared, and the loss of its model folder by transformers."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    command = [sys.executable, "-m", "linnet", "train", "shakespeare-char"]
    settings = [f"data.source={text}", f"data.prepared={folder / 'prepared'}", f"train.seed={seed}"]
    command += [*settings, *overrides, "--run", str(folder / "run")]
    wall, cpu = run(command, cwd=folder, log=folder / "log.txt")
    model = AutoModelForCausalLM.from_pretrained(folder / "run/model").eval()
    tokenizer = Tokenizer.from_file(str(folder / "run/model/tokenizer.json"))
    # Line by line: the whole text at once is slow in the tokenizer, the ids are the same.
    pieces = held_out.splitlines(keepends=True)
    ids = [i for piece in tokenizer.encode_batch(pieces, add_special_tokens=False) for i in piece.ids]
    assert len(ids) == len(held_out), f"{len(ids)} ids for {len(held_out)} characters"
    return Outcome(wall, cpu, mean_loss(lambda x: model(x).logits, torch.tensor(ids), window=WINDOW))


def prepare_nanogpt(checkout: Path, *, python: str, text: Path | None) -> Path:
    """Put the text in its place and run nanoGPT's own preparation once; the path of the text."""
    folder = checkout / "data/shakespeare_char"
    if not (folder / "prepare.py").exists():
        sys.exit(f"{checkout} is not a checkout of nanoGPT: data/shakespeare_char/prepare.py is missing.")
    source = folder / "input.txt"
    if text is not None:
        source.write_bytes(text.read_bytes())
    if text is not None or not (folder / "train.bin").exists():
        subprocess.run([python, str(folder / "prepare.py")], check=True, stdout=subprocess.DEVNULL)
    return source


def figures(name: str, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """min, median and max of each measure."""
    columns = {
        "wall": ("s", [outcome.wall_s for outcome in outcomes]),
        "processor_time": ("s", [outcome.cpu_s for outcome in outcomes]),
        "validation_loss": ("nats", [outcome.loss for outcome in outcomes]),
    }
    return [
        {
            "name": f"{name}_{measure}",
            "unit": unit,
            "min": round(min(values), 4),
            "median": round(statistics.median(values), 4),
            "max": round(max(values), 4),
        }
        for measure, (unit, values) in columns.items()
    ]


def print_table(rows: Sequence[dict[str, object]]) -> None:
    """The figures and the two numbers that decide."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{'':32}{'min':>10}{'median':>10}{'max':>10}")
    for row in rows:
        print(f"{row['name']!s:26}{row['unit']!s:>6}{row['min']:>10}{row['median']:>10}{row['max']:>10}")
    median = {str(row["name"]): float(str(row["median"])) for row in rows}
    share = median["linnet_wall"] / median["nanogpt_wall"]
    gap = median["linnet_validation_loss"] - median["nanogpt_validation_loss"]
    print(f"linnet takes {share:.3f} of nanoGPT's wall time (goal: at most 0.25)")
    print(f"linnet's loss is {gap:+.4f} from nanoGPT's (goal: at most +0.005)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--text", type=Path, help="tinyshakespeare; default: nanoGPT's, which downloads it")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of our recipe")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()

    checkout = args.nanogpt.resolve()
    source = prepare_nanogpt(checkout, python=args.python, text=args.text)
    text = source.read_text(encoding="utf-8")
    held_out = text[int(len(text) * 0.9) :]
    theirs: list[Outcome] = []
    ours: list[Outcome] = []
    for round_ in range(args.rounds):
        for name, outcomes in (("nanogpt", theirs), ("linnet", ours)):
            with tempfile.TemporaryDirectory(prefix=f"time-to-loss-{name}-") as temporary:
                folder = Path(temporary)
                if name == "nanogpt":
                    outcome = nanogpt_round(checkout, folder, python=args.python, held_out=held_out)
                else:
                    outcome = linnet_round(
                        source, folder, seed=round_ + 1, overrides=args.set, held_out=held_out
                    )
            outcomes.append(outcome)
            print(f"round {round_ + 1}, {name}: {outcome}", file=sys.stderr, flush=True)
    rows = figures("linnet", ours) + figures("nanogpt", theirs)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
