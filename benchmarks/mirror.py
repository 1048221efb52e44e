"""What a mirror costs the training: the same run without one, with one, and with one that is slow.

What  ms of a training step (median over all steps) and ms of a save (median; a mirror adds the holding of the files).
Why   A mirror must not stall the training, however slow it is.
How   python benchmarks/mirror.py [--rounds 3] [--json]

      30 steps of a GPT-2 with 4 layers, 256 wide, a checkpoint every 5 steps, in turn in one process. The slow
      mirror waits 0.2 s before each change of its disk (tests/mirror_faults): it gets only some of the checkpoints.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import linnet
from linnet import session

FAULTS = Path(__file__).parent.parent / "tests" / "mirror_faults"
KINDS = ("none", "mirror", "slow mirror")


def run(folder: Path, kind: str) -> tuple[list[float], list[float]]:
    """Milliseconds of each step and of each save."""
    saves: list[float] = []
    save = session.Session.save

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        save(*arguments)
        saves.append(1000 * (time.perf_counter() - started))

    environ = {"PYTHONPATH": str(FAULTS), "LINNET_TEST_MIRROR": json.dumps({"delay": 0.2})}
    session.Session.save = timed  # type: ignore[method-assign]
    os.environ.update(environ if kind == "slow mirror" else {})
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            done = linnet.train(
                "scratch",
                run=folder / "runs" / "one",
                data={"source": str(folder / "text.txt"), "prepared": str(folder / "store")},
                tokenizer={"name": "char"},
                model={"n_layer": 4, "n_head": 4, "n_embd": 256, "n_positions": 128},
                train={"steps": 30, "batch_size": 4, "block_size": 128, "save_every": 5, "eval_every": 30},
                sample={"max_new_tokens": 0},
                mirror=None if kind == "none" else folder / kind,
            )
    finally:
        session.Session.save = save  # type: ignore[method-assign]
        for key in environ:
            os.environ.pop(key, None)
    times = [row["time_s"] for row in done.metrics() if "loss" in row]
    return [1000 * (b - a) for a, b in itertools.pairwise(times)], saves


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    steps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    saves: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds):
        for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "text.txt").write_text("the bird sings a song that it has heard. " * 2000)
                (folder / kind).mkdir()
                step, save = run(folder, kind)
            steps[kind].append(statistics.median(step))
            saves[kind].append(statistics.median(save))
    rows = [
        {
            "name": f"linnet, {kind}: {what}",
            "unit": "ms",
            "min": min(v),
            "median": statistics.median(v),
            "max": max(v),
        }
        for what, table in (("step", steps), ("save", saves))
        for kind, v in table.items()
    ]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['name']:34} {row['median']:8.1f} ms   ({row['min']:.1f} to {row['max']:.1f})")


if __name__ == "__main__":
    main()
