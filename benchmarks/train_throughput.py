"""Training speed: whole optimizer steps of a GPT-2, by transformers, nanoGPT and Linnet in turns.

What   Tokens a second of forward, backward, clip, AdamW and zero_grad; beside them the machine's two roofs (FLOP/s of
       matrix products, bytes/s of a copy), each candidate's share of the roof, and peak memory.
Why    Training must be as fast as the machine allows, and a ratio counts only if both were measured alike.
How    python benchmarks/train_throughput.py [--nanogpt ~/nanoGPT] [--model gpt2] [--rounds 5] [--steps 3] [--json]

       Each candidate is a process of its own (turns.py). They run one at a time, round after round; the others sleep,
       or where the memory does not hold all of them end after each turn. All start from the same weights, made here,
       and read the same batches: tokens drawn by Zipf's law from the whole vocabulary. Nothing is compared before the
       loss of the first batch is the same for all: within 1e-3 in fp32 and 2e-2 in bf16. Linnet is its real loop
       (ours.py), with the precision, threads and micro-batches that it chooses by itself.

       transformers: AutoModelForCausalLM, its own loss, torch's fused AdamW. nanoGPT: its model.py and optimizer.
       FLOP of a token: 6 N + 12 L C T (N parameters, L layers, C channels, T tokens of a row), as in PaLM's appendix B.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

PEERS_ENVIRONMENT = dict(os.environ)  # before Linnet is imported, which sets something for its threads

from jobs import SHAPES, all_fit, keys_of, make_job, read_job  # noqa: E402
from speeds import Speeds, Way, check_losses, emulated, middle_of  # noqa: E402
from turns import (  # noqa: E402
    Candidate,
    CandidateError,
    Turns,
    describe_versions,
    figure,
    say,
    table,
)

DEFAULT = "transformers-fp32"
ROOFS = "roofs"
ROOF_UNITS = {"fp32": "FLOP/s", "bf16": "FLOP/s", "bytes": "bytes/s"}
WARM_STEPS = 2  # of a process that has just started; later turns begin with 1


WAYS = {
    "transformers-fp32": Way("transformers", "fp32"),
    "transformers-fp32-compile": Way("transformers", "fp32", compiled=True),
    "transformers-bf16": Way("transformers", "bf16"),
    "transformers-bf16-compile": Way("transformers", "bf16", compiled=True),
    "nanogpt-fp32": Way("nanogpt", "fp32"),
    "nanogpt-fp32-compile": Way("nanogpt", "fp32", compiled=True),
    "nanogpt-bf16": Way("nanogpt", "bf16"),
    "nanogpt-bf16-compile": Way("nanogpt", "bf16", compiled=True),
    "linnet": Way("linnet", "auto"),
    "linnet-fp32": Way("linnet", "fp32"),
    "linnet-compile": Way("linnet", "auto", compiled=True),
}


# -- the candidates ---------------------------------------------------------------------------------------------------


def work_on(name: str) -> None:
    """What the process of a candidate does, in the folder of the benchmark."""
    turns = Turns()
    if name in WAYS and WAYS[name].who == "linnet":
        import linnet  # noqa: F401  (sets what `linnet` sets, before torch is imported)
    from steppers import measure_roofs, train_nanogpt, train_transformers

    job = read_job(Path("job.json"))
    if name == ROOFS:
        return measure_roofs(turns, job)
    way = WAYS[name]
    if way.who == "linnet":
        from ours import train_in_turns

        turns.wait()
        keys = keys_of(job) | {"train.precision": way.precision, "train.compile": way.compiled}
        return train_in_turns(turns, "text", keys, folder=Path("run"))
    train = train_transformers if way.who == "transformers" else train_nanogpt
    return train(turns, job, precision=way.precision, compiled=way.compiled)


# -- measuring -------------------------------------------------------------------------------------------------------


def missing(args: argparse.Namespace, *, device: str) -> dict[str, str]:
    """Candidates that cannot be measured here, and why."""
    reasons = emulated(WAYS, device=device)
    for name, way in WAYS.items():
        if way.who == "nanogpt" and args.nanogpt is None:
            reasons[name] = "no --nanogpt PATH"
        if way.who == "transformers" and importlib.util.find_spec("transformers") is None:
            reasons[name] = "transformers is not installed"
    return reasons


def run_rounds(
    args: argparse.Namespace, job: Any, *, work: Path
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """The turns of each candidate, and why others have none."""
    reasons = missing(args, device=job.device)
    names = [name for name in WAYS if name in args.only and name not in reasons]
    tokens = job.rows * job.block_size
    # A card is for one process at a time.
    stays = not args.apart and job.device == "cpu" and all_fit(job.shape, count=len(names) + 1, tokens=tokens)
    say(f"{len(names)} candidates; {'all stay alive' if stays else 'each ends after its turn'}")
    script = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    candidates = [
        Candidate(name, [*script, name], folder=work, environment=PEERS_ENVIRONMENT)
        for name in (ROOFS, *names)
    ]
    turns: dict[str, list[Any]] = defaultdict(list)
    first: dict[str, float] = {}
    try:
        for round_ in range(args.rounds):
            for candidate in [c for c in candidates if c.name not in reasons]:
                is_new = not candidate.is_running
                warm, steps = (0, 1) if candidate.name == ROOFS else (WARM_STEPS if is_new else 1, args.steps)
                try:
                    turn = candidate.turn(warm=warm, steps=steps)
                except CandidateError as error:
                    reasons[candidate.name] = str(error)
                    say(f"{candidate.name} is left out: {error}")
                    continue
                if candidate.name != ROOFS:
                    if is_new:
                        first[candidate.name] = turn["steps"][0]["loss"]
                        check_losses(first, WAYS)
                    speed = args.steps * tokens / turn["seconds"]
                    say(
                        f"round {round_ + 1}, {candidate.name}: {speed:,.0f} tokens/s, {turn['memory_gb']:.2f} GB"
                    )
                turns[candidate.name].append(turn)
                if not stays:
                    candidate.stop()
    finally:
        for candidate in candidates:
            candidate.stop()
    return {name: found for name, found in turns.items() if name not in reasons}, reasons


# -- showing ---------------------------------------------------------------------------------------------------------


class Results:
    """Speeds and shares of the roof in all rounds."""

    def __init__(self, job: Any, turns: dict[str, list[Any]], *, steps: int) -> None:
        from linnet.device import choose_precision
        from linnet.model.gpt2 import GPT2Config

        shape, tokens = job.shape, steps * job.rows * job.block_size
        n = GPT2Config(**shape).parameters
        self.flop = 6 * n + 12 * shape["n_layer"] * shape["n_embd"] * job.block_size
        self.auto = choose_precision("auto", job.device).value
        self.turns = {name: found for name, found in turns.items() if name != ROOFS}
        self.speeds = Speeds(self.turns, WAYS, default=DEFAULT, speed=lambda turn: tokens / turn["seconds"])
        self.roofs = {
            key: [turn["steps"][0][key] for turn in turns[ROOFS]]
            for key in ROOF_UNITS
            if key in turns[ROOFS][0]["steps"][0]
        }

    def shares(self, name: str) -> list[float]:
        """Round by round, the share of what the matrix products of this precision would allow."""
        precision = WAYS[name].precision if WAYS[name].precision != "auto" else self.auto
        pairs = zip(self.speeds.speeds[name], self.roofs[precision], strict=True)
        return [speed * self.flop / roof for speed, roof in pairs]

    def figures(self) -> list[dict[str, Any]]:
        """For --json."""
        rows = [figure(f"roof-{key}", ROOF_UNITS[key], values) for key, values in self.roofs.items()]
        for name, found in self.turns.items():
            rows += self.speeds.figures(name)
            rows.append(figure(f"{name}-share-of-roof", "share", self.shares(name)))
            rows.append(figure(f"{name}-first-loss", "nats", [found[0]["steps"][0]["loss"]]))
        return rows

    def table(self) -> str:
        titles = ["", *self.speeds.titles, "share of roof", "first loss", "last loss"]
        rows = []
        for name, found in self.turns.items():
            losses = [found[0]["steps"][0]["loss"], found[-1]["steps"][-1]["loss"]]
            shares = middle_of(self.shares(name), ".1%")
            rows.append([name, *self.speeds.cells(name), shares, *(f"{loss:.4f}" for loss in losses)])
        lines = [table(titles, rows)]
        for key, values in self.roofs.items():
            line = f"roof, {key}: {middle_of([value / 1e12 for value in values], '.3f')} T{ROOF_UNITS[key]}"
            allowed = statistics.median(values) / self.flop
            lines.append(line if key == "bytes" else f"{line}; that is {allowed:,.0f} tokens/s")
        names = f"default: {DEFAULT}; best peer: {self.speeds.best_peer}"
        return "\n".join([*lines, f"{names}; a token takes {self.flop / 1e6:,.1f} MFLOP"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="gpt2")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step")
    parser.add_argument("--block-size", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each turn")
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help=", ".join(WAYS)
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument(
        "--apart", action="store_true", help="end each process after its turn, whatever the memory"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, the table on stderr")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if args.worker:
        work_on(args.worker)
        return
    if args.nanogpt is not None and not (args.nanogpt / "model.py").is_file():
        sys.exit(f"{args.nanogpt} is not a checkout of nanoGPT: model.py is missing.")
    if args.device == "cpu":  # before torch looks, here and in the candidates
        os.environ["CUDA_VISIBLE_DEVICES"] = PEERS_ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA card.")
    with tempfile.TemporaryDirectory(prefix="train-throughput-") as temporary:
        work = Path(temporary)
        job = make_job(
            args.model,
            rows=args.rows,
            block_size=args.block_size,
            steps=WARM_STEPS + args.rounds * (1 + args.steps),
            nanogpt=args.nanogpt,
            work=work,
        )
        (work / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        turns, reasons = run_rounds(args, job, work=work)
    results = Results(job, turns, steps=args.steps)
    out = sys.stderr if args.json else sys.stdout
    print(
        f"{args.model}, {job.rows} x {job.block_size}, {args.rounds} rounds of {args.steps} steps", file=out
    )
    print(describe_versions(args.nanogpt), results.table(), sep="\n", file=out)
    for name, reason in reasons.items():
        print(f"{name} is missing: {reason}", file=out)
    if args.json:
        print(json.dumps(results.figures(), indent=2))


if __name__ == "__main__":
    main()
