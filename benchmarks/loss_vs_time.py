"""Held-out loss against training time: nanoGPT's recipe for a small GPT-2 beside `linnet train scratch`.

What  Both train a GPT-2 of the same size on the same ids (a BPE of 8,192 entries, made by `linnet prepare`; the last
      tenth of each text is held out), as whole processes in turn, with several seeds. How long Linnet trains until its
      loss is nanoGPT's, as a share of nanoGPT's time; both curves; the losses of what both saved, by one rule.
Why   Steps per second say nothing about what is learned in them, and a loss per step nothing about what it costs.
How   python benchmarks/loss_vs_time.py --text FOLDER --nanogpt ~/nanoGPT [--seeds 3] [--out FOLDER] [--json]

      nanoGPT: its config/train_shakespeare_char.py (6 layers, 384 wide, 64 windows of 256, AdamW 1e-3, cosine) without
      dropout, compiled on CUDA, in fp32 on a CPU (its only way there). It has no option for its seed, so a copy of its
      train.py has another number in that line. Its blocks have no biases, ours have (0.2 % more weights).
      The clock: steps alone, the first as a usual one, since it compiles or loads kernels (the share with that time
      and the share of whole processes are given, too). For nanoGPT it is the time between its lines, where a gap with
      an evaluation or a checkpoint counts as its usual steps; for Linnet `time_s` of metrics.jsonl.
      nanoGPT's time is that of its best checkpoint; Linnet's that of its first evaluation at or below the loss of it.
      The rule: all held-out ids in windows that follow each other, fp32, mean in nats. Both curves are shifted to it:
      nanoGPT measures random windows, Linnet computes in bf16. --budget MINUTES is a short form with one seed, on a
      CPU with the small model of nanoGPT's CPU example.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from nanogpt import (
    EVALUATIONS,
    NANOGPT_ON_CPU,
    Curve,
    Job,
    Outcome,
    count_parameters,
    mean_loss,
    run,
    say,
    train_nanogpt,
    write_ids,
)

# Of nanoGPT's steps, with as many tokens a step.
OUR_SHARE_OF_STEPS = 1 / 3


def train_linnet(
    job: Job,
    *,
    text: Path,
    seed: int,
    folder: Path,
    held_out: torch.Tensor,
    our_steps: int | None,
    overrides: Sequence[str],
) -> Outcome:
    """`linnet train scratch` on prepared data, and the loss of its model folder by transformers."""
    from transformers import AutoModelForCausalLM

    steps = our_steps or max(1, round(job.steps * OUR_SHARE_OF_STEPS))
    settings = {
        "data.prepared": folder.parent / "prepared",
        "model.n_layer": job.n_layer,
        "model.n_head": job.n_head,
        "model.n_embd": job.n_embd,
        "model.n_positions": job.window,
        "train.batch_size": job.rows,
        "train.block_size": job.window,
        "train.steps": steps,
        "train.seed": seed,
        "train.eval_every": max(1, steps // EVALUATIONS),
        "train.eval_tokens": len(held_out) if held_out.device.type == "cuda" else 50_000,
        "train.save_every": steps,
        "sample.max_new_tokens": 0,
    }
    command = [sys.executable, "-m", "linnet", "train", "scratch", *prepared_settings(text)]
    command += [f"{key}={value}" for key, value in settings.items()]
    command += [*overrides, "--run", str(folder / "run")]
    wall = run(command, cwd=Path.cwd(), log=folder / "log.txt")
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_bytes().splitlines()]
    start = first_step(rows)
    found = [
        (max(0.0, row["time_s"] - start), row["validation_loss"]) for row in rows if "validation_loss" in row
    ]
    model = AutoModelForCausalLM.from_pretrained(folder / "run/model").to(held_out.device).eval()
    loss = mean_loss(lambda x: model(x).logits, held_out, window=job.window)
    best_s, best = min(found[1:], key=lambda point: point[1])
    return Outcome(
        curve=[(at, value + loss - best) for at, value in found],
        loss=loss,
        best_s=best_s,
        training_s=found[-1][0],
        wall_s=wall,
        parameters=count_parameters(model),
        steps=rows[-1]["step"],
        start_s=start,
    )


def first_step(rows: Sequence[dict[str, float]]) -> float:
    """What the first step of metrics.jsonl took beyond a usual one: kernels are loaded, a network is compiled."""
    at = [(row["step"], row["time_s"]) for row in rows if "loss" in row]
    each = [(t_b - t_a) / (b - a) for (a, t_a), (b, t_b) in pairwise(at)]
    return max(0.0, at[0][1] - at[0][0] * statistics.median(each)) if each else 0.0


def prepared_settings(text: Path) -> list[str]:
    """The recipe's keys that decide the ids."""
    return [f"data.source={text}", "data.filters.boilerplate=true", "data.validation=0.1"]


def prepare(text: Path, out: Path) -> torch.Tensor:
    """Prepare the ids with Linnet, and the same ids as nanoGPT's files; the held-out ids [N]."""
    from linnet.data.store import Store

    command = [sys.executable, "-m", "linnet", "prepare", "scratch", *prepared_settings(text)]
    run([*command, f"data.prepared={out / 'prepared'}"], cwd=Path.cwd(), log=out / "prepare.txt")
    store = Store.open(out / "prepared")
    assert store.validation is not None
    held_out = store.validation.tokens
    write_ids(out / "ids", train=store.tokens, held_out=held_out, vocab_size=store.vocab_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.from_numpy(np.asarray(held_out).astype(np.int64)).to(device)


def reaches(curve: Curve, loss: float) -> float | None:
    """Seconds of training at the first evaluation that is at or below `loss`."""
    return next((at for at, value in curve if value <= loss), None)


def figures(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[dict[str, object]]:
    """min, median and max of each measure; seeds that never reach nanoGPT's loss count in `linnet-reached` alone."""
    columns: dict[str, tuple[str, list[float]]] = {}
    for name, outcomes in (("linnet", ours), ("nanogpt", theirs)):
        columns[f"{name}-loss"] = ("nats", [each.loss for each in outcomes])
        columns[f"{name}-training"] = ("s", [each.training_s for each in outcomes])
        columns[f"{name}-to-its-best"] = ("s", [each.best_s for each in outcomes])
        columns[f"{name}-first-step"] = ("s", [each.start_s for each in outcomes])
        columns[f"{name}-whole-process"] = ("s", [each.wall_s for each in outcomes])
        columns[f"{name}-steps"] = ("steps", [each.steps for each in outcomes])
        columns[f"{name}-parameters"] = ("weights", [each.parameters for each in outcomes])
    pairs = [(reaches(o.curve, t.loss), o, t) for o, t in zip(ours, theirs, strict=False)]
    columns["linnet-reached"] = ("share", [float(at is not None) for at, _, _ in pairs])
    good = [(at, o, t) for at, o, t in pairs if at is not None]
    columns["linnet-to-nanogpt-loss"] = ("s", [at for at, _, _ in good])
    columns["linnet-share-of-time"] = ("share", [at / t.best_s for at, _, t in good])
    with_start = [(at + o.start_s) / (t.best_s + t.start_s) for at, o, t in good]
    columns["linnet-share-with-first-step"] = ("share", with_start)
    columns["linnet-share-of-process"] = ("share", [o.wall_s / t.wall_s for _, o, t in pairs])
    return [
        {
            "name": name,
            "unit": unit,
            "min": round(min(values), 4),
            "median": round(statistics.median(values), 4),
            "max": round(max(values), 4),
        }
        for name, (unit, values) in columns.items()
        if values
    ]


def draw(path: Path, *, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> None:
    """Both families of curves, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, colour, outcomes in (("nanoGPT", "tab:gray", theirs), ("linnet", "tab:green", ours)):
        for number, outcome in enumerate(outcomes):
            x, y = zip(*outcome.curve, strict=True)
            axes.plot(x, y, color=colour, marker=".", label=name if number == 0 else None)
    if theirs:
        axes.axhline(statistics.median(each.loss for each in theirs), color="tab:gray", linestyle=":")
        lowest = min(each.loss for each in [*ours, *theirs])
        axes.set_ylim(lowest - 0.1, lowest + 2.5)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("held-out loss, nats for a token")
    axes.legend()
    picture.savefig(path, dpi=150)


def fit(job: Job, budget: float, trial: Outcome) -> Job:
    """The job with as many steps as fit: nanoGPT's get half of the minutes, starts and evaluations the rest."""
    each = trial.training_s / trial.steps
    return replace(job, steps=max(60, min(job.steps, int(0.5 * 60 * budget / each))))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="a text file or a folder of them")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT; without it ours alone")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs nanoGPT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of nanoGPT")
    parser.add_argument("--our-steps", type=int, help="of ours; default: a third of theirs")
    parser.add_argument("--small", action="store_true", help="the model of nanoGPT's CPU example")
    parser.add_argument("--budget", type=float, help="minutes, about: one seed and as many steps as fit")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of our recipe")
    parser.add_argument("--out", type=Path, default=Path("loss-vs-time"), help="logs, runs and results")
    parser.add_argument("--plot", type=Path, help="picture of the curves; default: in --out")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    held_out = prepare(args.text.resolve(), out)
    small = args.small or (args.budget and held_out.device.type == "cpu")
    job = NANOGPT_ON_CPU if small else Job()
    if args.steps:
        job = replace(job, steps=args.steps)

    def nanogpt(job: Job, seed: int, folder: Path) -> Outcome:
        checkout = args.nanogpt.resolve()
        return train_nanogpt(
            job, checkout=checkout, python=args.python, seed=seed, folder=folder, held_out=held_out
        )

    def linnet(job: Job, seed: int, folder: Path) -> Outcome:
        text = args.text.resolve()
        return train_linnet(
            job,
            text=text,
            seed=seed,
            folder=folder,
            held_out=held_out,
            our_steps=args.our_steps,
            overrides=args.set,
        )

    def train(name: str, trainer: Callable[[Job, int, Path], Outcome], seed: int) -> Outcome:
        folder = out / f"{name}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        outcome = trainer(job, seed, folder)
        say(
            f"{name}, seed {seed}: loss {outcome.loss:.4f} after {outcome.best_s:.1f} s of training, "
            f"{outcome.steps} steps in {outcome.training_s:.1f} s, process {outcome.wall_s:.1f} s"
        )
        return outcome

    if args.budget and args.nanogpt:
        whole, job = job, replace(job, steps=20)
        job = fit(whole, args.budget, train("nanogpt", nanogpt, 0))
    ours: list[Outcome] = []
    theirs: list[Outcome] = []
    for seed in range(1, (1 if args.budget else args.seeds) + 1):
        if args.nanogpt:
            theirs.append(train("nanogpt", nanogpt, seed))
        ours.append(train("linnet", linnet, seed))
        machine = torch.cuda.get_device_name() if held_out.is_cuda else platform.processor()
        record = {
            "machine": machine or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "job": asdict(job),
            "set": args.set,
            "figures": (rows := figures(ours, theirs)),
            "linnet": [asdict(each) for each in ours],
            "nanogpt": [asdict(each) for each in theirs],
        }
        (out / "loss-vs-time.json").write_text(json.dumps(record, indent=1) + "\n")
        draw(args.plot or out / "loss-vs-time.png", ours=ours, theirs=theirs)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{record['machine']}, {record['cores']} cores, torch {record['torch']}, {job}")
    for row in rows:
        print(f"{row['name']!s:26}{row['unit']!s:>8}{row['min']:>12}{row['median']:>12}{row['max']:>12}")


if __name__ == "__main__":
    main()
