"""Fine-tuning on answers: `linnet train math` against transformers' Trainer and TRL's packing, and who stops.

What   From the same weights, on the same rows, with the same learned tokens a step: the held-out loss that each way of
       batching reaches, the share of real tokens in what it computes, its speed and memory, and the share of answers
       that the trained model ends by itself. benchmarks/peers.py has the trainings.
Why    Padding wastes work, and packing must not cost quality. And the common recipe (pad_token = eos_token, padding
       masked by its id) never learns the end of an answer: here it is beside the others.
How    python benchmarks/answers.py --train gsm8k_train.jsonl --held-out gsm8k_test.jsonl [--model FOLDER] [--json]

       Each training runs in a process of its own and saves a model folder. All folders are then measured here by one
       and the same code: the loss by `linnet eval` in fp32, the answers by transformers' `generate` on the questions
       that `linnet eval` takes, 64 at a time. --steps 3 --seeds 1 --generate 8 is a trial of minutes.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared/data"
NAMES = ("linnet", "trainer", "trainer-grouped", "trl-packing", "trainer-padding-by-id")
INITIAL = "initial"
MAX_NEW_TOKENS = 256
ANSWERS_AT_ONCE = 64
UNITS = {
    "loss": "nats",
    "ended": "share",
    "real-share": "share",
    "tokens-per-s": "tokens/s",
    "memory": "GB",
    "seconds": "s",
    "learned-per-step": "tokens",
    "steps": "steps",
}
LESS_LEARNED = 0.05  # the most by which learned tokens of a step may differ from ours


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_setup(args: argparse.Namespace, work: Path) -> Any:
    """Prepare the rows once, and choose the rows and examples of a step as `linnet train math` does."""
    from peers import Setup

    from linnet.data.batches import Batches
    from linnet.device import this_machine
    from linnet.model.pretrained import read_config
    from linnet.preparing import prepare_store
    from linnet.recipe import load_recipe
    from linnet.setup import plan_run

    length = {"train.epochs": args.epochs} if args.steps is None else {"train.steps": args.steps}
    recipe = load_recipe(
        "math",
        {
            "data.source": str(args.train),
            "data.validation": 0.0,
            "data.prepared": str(work / "prepared"),
            "model.init_from": str(args.model),
            "train.batch_size": args.rows or "auto",
            **length,
        },
    )
    shape = read_config(args.model)
    store = prepare_store(recipe, tokenizer_from=args.model, n_positions=shape.n_positions)
    machine = this_machine(recipe.train.precision)
    plan = plan_run(recipe, store=store, model_config=shape, machine=machine, kept={})
    batches = Batches(store, block_size=plan.block_size, batch_size=plan.batch_size, seed=1)
    count = len(store.examples) - 1
    examples = max(1, round(count * plan.batch_size / batches.rows_per_epoch))
    say(
        f"{count:,} examples in {batches.rows_per_epoch:,} rows of {plan.block_size}; a step has {plan.batch_size} "
        f"rows, or {examples} examples; {plan.steps:,} steps on {plan.device} in {plan.precision}"
    )
    return Setup(
        model=str(args.model),
        train=str(args.train),
        prepared=str(work / "prepared"),
        block_size=plan.block_size,
        rows=plan.batch_size,
        examples=examples,
        epochs=args.epochs,
        steps=args.steps,
        config=recipe.train.model_dump(),
    )


def run_training(name: str, *, work: Path, seeds: int) -> list[dict[str, Any]] | str:
    """The figures of each seed, from a process of its own; a text: why there are none."""
    say(f"{name}: {seeds} trainings")
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, "--seeds", str(seeds)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    with (work / f"{name}.log").open("w+b") as log:
        code = subprocess.run(command, cwd=work, env=environment, stdout=log, stderr=log).returncode
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if code != 0:
        say("\n".join(lines[-15:]))
        return lines[-1] if lines else f"ended with {code}"
    say(f"{name}: done in {time.perf_counter() - started:.0f} s, imports included")
    rows: list[dict[str, Any]] = json.loads((work / name / "figures.json").read_bytes())
    return rows


def work_on(name: str, *, seeds: int) -> None:
    """What the process of a training does, in the folder of the benchmark."""
    from peers import Setup, train_seeds

    setup = Setup(**json.loads(Path("setup.json").read_bytes()))
    rows = train_seeds(name, setup, seeds=seeds, folder=Path(name).resolve())
    Path(name, "figures.json").write_text(json.dumps(rows), encoding="utf-8")


# -- measuring, alike for all ----------------------------------------------------------------------------------------


def measure(folder: Path, args: argparse.Namespace, *, work: Path) -> dict[str, float]:
    """Held-out loss and the share of answers that end, of one model folder."""
    from linnet.evaluation import Settings, evaluate

    prepared = work / "held-out"
    settings = Settings(
        data=str(args.held_out), format="instruct", generate=0, limit_tokens=args.limit_tokens
    )
    report = evaluate([str(folder)], settings, overrides=[f"data.prepared={prepared}"], say=say)[0]
    figures: dict[str, float] = {"loss": report["loss"]}
    if args.generate:
        figures["ended"] = ended_share(folder, prepared=prepared, args=args)
    return figures


def ended_share(folder: Path, *, prepared: Path, args: argparse.Namespace) -> float:
    """The share of answers that come to end-of-text within MAX_NEW_TOKENS tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from linnet.data.store import Store
    from linnet.device import choose_device
    from linnet.evaluate.questions import choose_questions

    device = choose_device().value
    store = Store.open(prepared)
    end = store.end_of_text
    questions = choose_questions(store, tokenizer=store.tokenizer(), count=args.generate)
    prompts = sorted((question.ids for question in questions), key=len)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    sampling: dict[str, Any] = {"do_sample": False}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": 0.95, "top_k": 0}
    torch.manual_seed(0)
    ended = 0
    for start in range(0, len(prompts), ANSWERS_AT_ONCE):
        batch = prompts[start : start + ANSWERS_AT_ONCE]
        width = max(map(len, batch))
        room = min(MAX_NEW_TOKENS, model.config.n_positions - width)
        ids = torch.tensor([[end] * (width - len(row)) + row for row in batch], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=device)
        written = model.generate(
            ids, attention_mask=mask, max_new_tokens=room, eos_token_id=end, pad_token_id=end, **sampling
        )
        ended += int((written[:, width:] == end).any(dim=1).sum())
    return ended / len(prompts)


def derived(row: dict[str, Any]) -> dict[str, float]:
    """The named figures of one training."""
    return {
        "real-share": row["real_tokens"] / row["computed_tokens"],
        "tokens-per-s": row["real_tokens"] / row["seconds"],
        "memory": row["memory_gb"],
        "seconds": row["seconds"],
        "learned-per-step": row["learned_tokens"] / row["steps"],
        "steps": row["steps"],
    }


def summaries(name: str, measured: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """min, median and max of each figure."""
    rows = []
    for key, unit in UNITS.items():
        values = [figures[key] for figures in measured if key in figures]
        if values:
            spread = {"min": min(values), "median": statistics.median(values), "max": max(values)}
            rows.append(
                {"name": f"{name}-{key}", "unit": unit, **{k: round(v, 4) for k, v in spread.items()}}
            )
    return rows


# -- showing ---------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures, and what they say about the goals."""
    lines = [f"{'':40}{'':>9}{'min':>12}{'median':>12}{'max':>12}"]
    for row in rows:
        if "missing" in row:
            lines.append(f"{row['name']:40} missing: {row['missing']}")
        else:
            numbers = "".join(f"{row[key]:>12,.4f}" for key in ("min", "median", "max"))
            lines.append(f"{row['name']:40}{row['unit']:>9}{numbers}")
    return "\n".join([*lines, *verdicts(rows)])


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each comparison that decides."""
    median = {row["name"]: row["median"] for row in rows if "median" in row}
    lines = []
    for name in ("trainer", "trainer-grouped", "trl-packing"):
        if {"linnet-loss", f"{name}-loss"} <= median.keys():
            gap = median["linnet-loss"] - median[f"{name}-loss"]
            lines.append(f"linnet's held-out loss is {gap:+.4f} from that of {name} (goal: at most 0)")
            share = median[f"{name}-learned-per-step"] / median["linnet-learned-per-step"]
            if math.fabs(share - 1) > LESS_LEARNED:
                lines.append(f"{name} learns {share:.3f} times as many tokens a step: not comparable")
    if "linnet-ended" in median:
        lines.append(
            f"linnet ends {median['linnet-ended']:.1%} of its answers by itself (goal: at least 95 %)"
        )
    return lines


def benchmark(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """All trainings and their figures; one without figures has the key `missing`."""
    setup = make_setup(args, work)
    (work / "setup.json").write_text(json.dumps(asdict(setup)), encoding="utf-8")
    before = measure(args.model, args, work=work)
    say(f"{INITIAL}: {before}")
    rows = keep(summaries(INITIAL, [before]), args.out)
    for name in args.only:
        trained = run_training(name, work=work, seeds=args.seeds)
        if isinstance(trained, str):
            rows = keep([*rows, {"name": name, "missing": trained}], args.out)
            continue
        measured = []
        for seed, figures in enumerate(trained, 1):
            found = measure(work / name / str(seed) / "model", args, work=work)
            measured.append(derived(figures) | found)
            say(f"{name}, seed {seed} ({figures['note']}): {measured[-1]}")
        rows = keep([*rows, *summaries(name, measured)], args.out)
    return rows


def keep(rows: Sequence[dict[str, Any]], path: Path | None) -> list[dict[str, Any]]:
    """`rows`, and those of other names in the file `path`, which then holds all of them."""
    if path is None:
        return list(rows)
    before = json.loads(path.read_bytes()) if path.exists() else []
    merged = {row["name"]: row for row in [*before, *rows]}
    path.write_text(json.dumps(list(merged.values()), indent=2) + "\n", encoding="utf-8")
    return list(merged.values())


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DATA / "base-30m", help="folder of the initial weights")
    parser.add_argument("--train", type=Path, default=DATA / "math/gsm8k_train.jsonl")
    parser.add_argument("--held-out", type=Path, default=DATA / "math/gsm8k_test.jsonl")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="stop after so many, for a trial")
    parser.add_argument(
        "--rows", type=int, help="packed rows of a step; default: as linnet train math chooses"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind, with seeds 1, 2, ...")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--generate", type=int, default=200, help="answers that are written; 0: none")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of the answers; 0: the likeliest token"
    )
    parser.add_argument(
        "--limit-tokens", type=int, help="measure the loss on at most so many held-out tokens"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, the table on stderr")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file of the figures, written after each kind; other calls may add theirs",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if args.worker:
        work_on(args.worker, seeds=args.seeds)
        return
    for key in ("model", "train", "held_out"):
        path = getattr(args, key).resolve()
        if not path.exists():
            sys.exit(f"{path} is missing: set --{key.replace('_', '-')}.")
        setattr(args, key, path)
    # Before torch looks: no card, or one only, since a Trainer would spread a batch over all.
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA card.")
    with tempfile.TemporaryDirectory(prefix="answers-") as temporary:
        rows = benchmark(args, Path(temporary))
    if args.json:
        print(json.dumps(rows, indent=2))
    print(table(rows), file=sys.stderr if args.json else sys.stdout)


if __name__ == "__main__":
    main()
