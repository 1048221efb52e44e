"""What report.html costs: one redraw of a long run, and all redraws of a real small training.

What  ms of a redraw with 1,000, 10,000 and 100,000 logged steps; the share of a training that its redraws took.
Why   The page is drawn inside the training process, at its evaluations.
How   python benchmarks/report.py [--rounds 7] [--train TEXT] [--json]

      The rows are made up, the rest of the run folder is nearly empty. Time of this process is counted; other work
      disturbs it least. --train: the recipe of `linnet demo`, made smaller, for 200 steps on the file TEXT,
      evaluated every 20 steps; there all time counts.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import linnet
from linnet.track.report import LiveReport, write_report

SIZES = (1_000, 10_000, 100_000)


def write_run(folder: Path, steps: int) -> None:
    """A run folder with so many logged steps and 50 evaluations."""
    draw = random.Random(steps)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rows.append(
            {
                "step": step,
                "time_s": round(step * 0.123456, 6),
                "loss": 3 + 700 / (100 + step) + draw.gauss(0, 0.1),
                "learning_rate": 1e-3 * (1 - step / steps),
                "grad_norm": abs(draw.gauss(1, 0.3)),
                "tokens": 8192 * step,
                "learned_tokens": 8192 * step,
                "tokens_per_s": round(draw.gauss(66_000, 2_000), 1),
                "memory_gb": 1.234,
            }
        )
        if step % (steps // 50) == 0:
            rows.append({"step": step, "time_s": round(step * 0.123456, 6), "validation_loss": 3.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.toml").write_text(f'name = "made-up"\n[train]\nsteps = {steps}\n')


def redraws(steps: int, rounds: int) -> list[float]:
    """Milliseconds of this process for a redraw."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, steps)
        write_report(folder)  # imports and plotly's JavaScript
        times = []
        for _ in range(rounds):
            live = LiveReport(folder)
            started = time.process_time()
            live.offer()
            times.append(1000 * (time.process_time() - started))
    return times


def share_of_training(text: Path) -> float:
    """Percent of the time of a real small training that the redraws at its evaluations took."""
    spent = 0.0
    offer: Callable[[LiveReport], None] = LiveReport.offer

    def timed(live: LiveReport) -> None:
        nonlocal spent
        started = time.perf_counter()
        offer(live)
        spent += time.perf_counter() - started

    LiveReport.offer = timed  # type: ignore[method-assign]
    try:
        with (
            tempfile.TemporaryDirectory() as name,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            started = time.perf_counter()
            linnet.train(
                "demo",
                run=Path(name) / "run",
                data={"source": str(text), "prepared": str(Path(name) / "prepared")},
                model={"n_layer": 2, "n_embd": 128, "n_positions": 64},
                train={"steps": 200, "batch_size": 16, "block_size": 64, "eval_every": 20, "save_every": 100},
            )
            whole = time.perf_counter() - started
    finally:
        LiveReport.offer = offer  # type: ignore[method-assign]
    return 100 * spent / whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train", type=Path, metavar="TEXT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = [
        (f"linnet, a redraw with {steps:,} steps", "ms", redraws(steps, options.rounds)) for steps in SIZES
    ]
    if options.train:
        figures.append(("linnet, redraws of a training", "%", [share_of_training(options.train)]))
    rows = [
        {"name": name, "unit": unit, "min": min(v), "median": statistics.median(v), "max": max(v)}
        for name, unit, v in figures
    ]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['name']:40} {row['median']:8.2f} {row['unit']}   ({row['min']:.2f} to {row['max']:.2f})")


if __name__ == "__main__":
    main()
