"""What a choice in the recipe does to the held-out loss: the same training with and without it, over several seeds.

    python benchmarks/choices.py summaries --data TRAIN.jsonl --held-out TEST.jsonl --model FOLDER \\
        --variant "start: data.reads=start" --variant "ends: data.reads=ends" [--measure "clean: KEY=VALUE ..."]

Every variant trains from the same weights; all are measured on the same held-out file, whatever their own filters do
to it. `--measure` reads that file in further ways (with filters on, say), each a column of its own. A variant that
trains on less text makes fewer steps in the same epochs: set train.steps to compare at equal steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import linnet
from linnet.data.store import Store
from linnet.evaluation import Settings, evaluate


def named(text: str) -> tuple[str, list[str]]:
    """ "name: KEY=VALUE KEY=VALUE" -> (name, [KEY=VALUE, ...])."""
    name, _, keys = text.partition(":")
    return name.strip(), keys.split()


def measure(run: Path, arguments: argparse.Namespace, *, own: list[str]) -> dict[str, float]:
    """The held-out loss per learned token for each way to read the held-out file."""
    losses = {}
    for name, keys in [("as it is", []), *map(named, arguments.measure)]:
        choices = [key for key in own if key.startswith("data.reads=")]
        settings = Settings(data=arguments.held_out, generate=0)
        report = evaluate([str(run)], settings, overrides=[*choices, *keys], say=lambda text: None)[0]
        losses[name] = float(report["loss"])
    return losses


def train(arguments: argparse.Namespace, keys: list[str], *, seed: int, folder: Path) -> dict[str, float]:
    """One training; its losses and how much it learned from."""
    run = folder / f"run-{seed}"
    linnet.train(
        arguments.recipe,
        run=run,
        overrides=[
            f"data.source={arguments.data}",
            f"data.validation={arguments.held_out}",
            f"data.prepared={folder / 'prepared'}",
            f"model.init_from={arguments.model}",
            f"train.seed={seed}",
            "sample.max_new_tokens=0",
            *arguments.set,
            *keys,
        ],
    )
    counts = Store.open(folder / "prepared", verify=False).manifest["counts"]
    return {
        "rows": counts["rows"],
        "learned tokens": counts["learned_tokens"],
        **measure(run, arguments, own=keys),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--variant", action="append", default=[], help='"name: KEY=VALUE ..."')
    parser.add_argument("--measure", action="append", default=[], help='"name: data.filters.KEY=VALUE ..."')
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    out, sys.stdout = sys.stdout, sys.stderr  # what a training says is progress here
    for name, keys in map(named, arguments.variant):
        found: dict[str, list[float]] = {}
        folder = Path(tempfile.mkdtemp())
        for seed in range(arguments.seeds):
            for key, value in train(arguments, keys, seed=seed, folder=folder).items():
                found.setdefault(key, []).append(value)
        shutil.rmtree(folder)
        for key, values in found.items():
            results.append(
                {
                    "name": f"linnet-{arguments.recipe}-{name}: {key}",
                    "unit": "nats per learned token" if key not in ("rows", "learned tokens") else "count",
                    "min": min(values),
                    "median": statistics.median(values),
                    "max": max(values),
                }
            )
    sys.stdout = out
    if arguments.json:
        print(json.dumps(results))
    else:
        for row in results:
            print(
                f"{row['name']:60} {row['median']:12.4f}  ({row['min']:.4f} to {row['max']:.4f})  {row['unit']}"
            )


if __name__ == "__main__":
    main()
