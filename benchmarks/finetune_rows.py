"""Fine-tuning speed on real rows: transformers' Trainer, TRL's packing and Linnet in turns, only answers learned.

What   Real tokens a second (no padding) of whole optimizer steps on questions with answers, and the loss against the
       learned tokens side by side.
Why    Rows of different lengths are where most work is wasted: on padding, and on scores of what is not learned.
How    python benchmarks/finetune_rows.py [--data gsm8k_train.jsonl] [--model gpt2|FOLDER] [--rounds 5] [--json]

       Each candidate is a process of its own (turns.py); they train one at a time, round after round. All start from
       the same weights and read the ids of `linnet prepare` (peers.py: same optimizer, rate, clipping, decay). The
       data are so many rows that the Trainer goes through them once, --batch of them in a step; block size and rows
       of Linnet and TRL are chosen so that a step learns as many tokens, and what they learned is counted. First of
       all each makes one step of all of the first rows: their losses must be the same, within 1e-3 in fp32 and 2e-2
       in bf16. Without --model FOLDER the weights are random, with a seed. Without data the rows are made up.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

PEERS_ENVIRONMENT = dict(os.environ)  # before Linnet is imported, which sets something for its threads

from jobs import SHAPES  # noqa: E402
from rows_job import DATA, PROBED, keys_of, make_setup, probe_of  # noqa: E402
from speeds import Speeds, Way, check_losses, emulated  # noqa: E402
from turns import (  # noqa: E402
    Candidate,
    CandidateError,
    Turns,
    describe_versions,
    figure,
    say,
    table,
)

UNEQUAL = 0.05  # the most by which learned tokens of a step may differ from the default's
DEFAULT = "trainer-fp32"
WARM_STEPS = 2  # of the first round; later ones begin with 1
POINTS = 6  # of the curve of losses


WAYS = {
    "trainer-fp32": Way("trainer", "fp32"),
    "trainer-grouped-fp32": Way("trainer-grouped", "fp32"),
    "trainer-bf16": Way("trainer", "bf16"),
    "trainer-grouped-bf16": Way("trainer-grouped", "bf16"),
    "trl-packing-fp32": Way("trl", "fp32"),
    "trl-packing-bf16": Way("trl", "bf16"),
    "linnet": Way("linnet", "auto"),
    "linnet-fp32": Way("linnet", "fp32"),
}


# -- the candidates --------------------------------------------------------------------------------------------------


def work_on(name: str) -> None:
    """What the process of a candidate does: the first step that all make, then the training."""
    turns, way = Turns(), WAYS[name]
    if way.who != "linnet":
        import torch  # noqa: F401  (first: its threads are as the peers' users have them)
    from ours import train_in_turns
    from peers import Setup

    turns.wait()
    for part in ("probe", "rows"):
        setup = Setup(**json.loads(Path(f"{part}.json").read_bytes()))
        if way.who == "linnet":
            train_in_turns(
                turns, "math", keys_of(setup) | {"train.precision": way.precision}, folder=Path("run")
            )
        else:
            train_peer(turns, way, replace(setup, precision=way.precision), folder=Path(name))


def train_peer(turns: Turns, way: Way, setup: Any, *, folder: Path) -> None:
    """A Trainer of theirs, which sleeps at the end of a step where its turn ends."""
    from peers import make_grouped, make_trainer, make_trl
    from transformers import TrainerCallback

    make = {"trainer": make_trainer, "trainer-grouped": make_grouped, "trl": make_trl}[way.who]
    if way.who == "trl":  # All rows of the first step, also where it packs them into more than we do.
        setup = replace(setup, rows=PROBED) if setup.steps == 1 else setup
    trainer = make(setup, 1, folder)

    class Sleep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            real, computed, learned = (sum(column) for column in zip(*trainer.counts, strict=True))
            loss = sum(trainer.losses)
            trainer.counts.clear()
            trainer.losses.clear()
            if not turns.step(loss=loss, tokens=real, computed=computed, learned_tokens=learned):
                control.should_training_stop = True

    trainer.add_callback(Sleep())
    trainer.train()


# -- measuring -------------------------------------------------------------------------------------------------------


def missing() -> dict[str, str]:
    """Candidates that cannot be measured here, and why."""
    from linnet.device import choose_device

    needs = {"trainer": ("transformers", "accelerate"), "trainer-grouped": ("transformers", "accelerate")}
    needs["trl"] = ("transformers", "accelerate", "trl")
    return emulated(WAYS, device=choose_device().value) | {
        name: f"{package} is not installed"
        for name, way in WAYS.items()
        for package in needs.get(way.who, ())
        if importlib.util.find_spec(package) is None
    }


def run_rounds(args: argparse.Namespace, work: Path) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """The turns of each candidate after the first step, and why others have none."""
    reasons = missing()
    names = [name for name in WAYS if name in args.only and name not in reasons]
    environment = PEERS_ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    candidates = [Candidate(name, [*script, name], folder=work, environment=environment) for name in names]
    turns: dict[str, list[Any]] = {name: [] for name in names}
    first: dict[str, float] = {}
    try:
        for round_ in range(args.rounds + 1):
            for candidate in [c for c in candidates if c.name not in reasons]:
                name = candidate.name
                try:
                    if round_ == 0:
                        first[name] = candidate.turn(warm=0, steps=1)["steps"][0]["loss"]
                        say(f"{name}: loss of the first {PROBED} examples {first[name]:.5f}")
                        check_losses(first, WAYS)
                        continue
                    turn = candidate.turn(warm=WARM_STEPS if round_ == 1 else 1, steps=args.steps)
                except CandidateError as error:
                    reasons[name] = str(error)
                    say(f"{name} is left out: {error}")
                    continue
                turns[name].append(turn)
                say(f"round {round_}, {name}: {speed(turn):,.0f} real tokens/s, {turn['memory_gb']:.2f} GB")
    finally:
        for candidate in candidates:
            candidate.stop()
    return {name: found for name, found in turns.items() if name not in reasons}, reasons


def speed(turn: dict[str, Any]) -> float:
    """Real tokens a second of the timed steps."""
    return float(sum(step["tokens"] for step in turn["steps"][turn["warm"] :]) / turn["seconds"])


# -- showing ---------------------------------------------------------------------------------------------------------


class Results:
    """Speeds and losses of all rounds."""

    def __init__(self, turns: dict[str, list[Any]]) -> None:
        self.turns = turns
        self.speeds = Speeds(turns, WAYS, default=DEFAULT, speed=speed)
        self.steps = {
            name: [step for turn in found for step in turn["steps"]] for name, found in turns.items()
        }

    def learned(self, name: str) -> float:
        """Learned tokens of a step, mean of all steps."""
        return statistics.fmean(step["learned_tokens"] for step in self.steps[name])

    def curve(self, name: str, *, points: int = POINTS) -> list[float]:
        """Mean loss of the learned tokens in each of so many equal parts of what was learned."""
        steps = self.steps[name]
        done = list(accumulate(step["learned_tokens"] for step in steps))
        means = []
        for part in range(points):
            low, high = done[-1] * part / points, done[-1] * (part + 1) / points
            inside = [
                s for s, end in zip(steps, done, strict=True) if low < end - s["learned_tokens"] / 2 <= high
            ]
            weight = sum(step["learned_tokens"] for step in inside)
            means.append(
                sum(s["loss"] * s["learned_tokens"] for s in inside) / weight if weight else float("nan")
            )
        return means

    def figures(self) -> list[dict[str, Any]]:
        """For --json."""
        rows = []
        for name in self.turns:
            curve = self.curve(name)
            losses = {"first": curve[0], "last": curve[-1], "mean": self.curve(name, points=1)[0]}
            rows += self.speeds.figures(name)
            rows.append(figure(f"{name}-learned-per-step", "tokens", [self.learned(name)]))
            rows += [figure(f"{name}-{which}-loss", "nats", [loss]) for which, loss in losses.items()]
        return rows

    def table(self) -> str:
        titles = ["", *self.speeds.titles, "learned tokens a step"]
        rows = [[name, *self.speeds.cells(name), f"{self.learned(name):.1f}"] for name in self.turns]
        curves = [[name, *(f"{point:.3f}" for point in self.curve(name))] for name in self.turns]
        lines = [
            table(titles, rows),
            "",
            "mean loss of the learned tokens, in equal parts of what each has learned:",
            table(["", *(f"{(part + 1) / POINTS:.0%}" for part in range(POINTS))], curves),
            "",
            f"default: {DEFAULT}; best peer: {self.speeds.best_peer}",
        ]
        return "\n".join([*lines, *self.verdicts()])

    def verdicts(self) -> list[str]:
        """How the losses compare, and where steps do not learn equally many tokens."""
        base = DEFAULT if DEFAULT in self.turns else next(iter(self.turns))
        lines = []
        for name in self.turns:
            gap = self.curve(name, points=1)[0] - self.curve(base, points=1)[0]
            share = self.learned(name) / self.learned(base)
            line = (
                f"{name}: mean loss {gap:+.4f} from {base}, {share:.3f} times as many learned tokens a step"
            )
            lines.append(line if abs(share - 1) <= UNEQUAL else f"{line}: NOT COMPARABLE")
        return lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gpt2", help=f"{', '.join(SHAPES)} (random weights), or a folder")
    parser.add_argument(
        "--data", type=Path, help="JSONL of questions and answers; default: GSM8K beside the project"
    )
    parser.add_argument(
        "--made-up", action="store_true", help="rows of random tokens, as where GSM8K is missing"
    )
    parser.add_argument("--tokenizer", type=Path, default=DATA / "gpt2-tokenizer", help="of random weights")
    parser.add_argument("--batch", type=int, default=4, help="examples of the Trainer's batch")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each turn")
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help=", ".join(WAYS)
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, the table on stderr")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    gsm8k = DATA / "math/gsm8k_train.jsonl"
    if args.data is None and not args.made_up and args.model != "tiny" and gsm8k.is_file():
        args.data = gsm8k
    return args


def main() -> None:
    args = parse()
    if args.worker:
        work_on(args.worker)
        return
    if args.model not in SHAPES and not Path(args.model).is_dir():
        sys.exit(f"--model {args.model} is neither one of {', '.join(SHAPES)} nor a folder.")
    if args.data is None and args.model not in SHAPES:
        sys.exit(f"--model {args.model} needs rows of its own language: set --data FILE.jsonl.")
    # Before torch looks, here and in the candidates: no card, or one only, since a Trainer would spread over all.
    cards = "" if args.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = PEERS_ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = cards
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA card.")
    steps = WARM_STEPS - 1 + args.rounds * (1 + args.steps)
    with tempfile.TemporaryDirectory(prefix="finetune-rows-") as temporary:
        work = Path(temporary)
        setup = make_setup(
            args.model,
            data=args.data,
            tokenizer=args.tokenizer,
            batch=args.batch,
            accumulate=args.accumulate,
            steps=steps,
            candidates=len(set(args.only) - missing().keys()),
            work=work,
        )
        for part, job in (("rows", setup), ("probe", probe_of(setup, work=work))):
            (work / f"{part}.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        turns, reasons = run_rounds(args, work)
    results = Results(turns)
    out = sys.stderr if args.json else sys.stdout
    rows = args.data.name if args.data else "made-up rows"
    print(f"{args.model} on {rows}, {args.rounds} rounds of {args.steps} steps", file=out)
    print(describe_versions(), results.table(), sep="\n", file=out)
    for name, reason in reasons.items():
        print(f"{name} is missing: {reason}", file=out)
    if args.json:
        print(json.dumps(results.figures(), indent=2))


if __name__ == "__main__":
    main()
