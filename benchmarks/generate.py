"""Writing speed: one text, eight texts, and the time to the first token, by llama.cpp, CTranslate2, transformers and
Linnet.

What   Tokens a second between the first token and the last (greedy, so that everyone writes the same), and the
       seconds from a prompt of 512 tokens to the first token.
Why    A model that is served on a CPU costs what a token takes.
How    python benchmarks/generate.py [--model FOLDER] [--tokenizer FOLDER] [--rounds 5] [--new-tokens 128] [--json]

       Each candidate is a process of its own (turns.py); they write one at a time, round after round. Without --model a
       GPT-2 of 124M with random weights is made, the same for all; llama.cpp reads it as GGUF in f16 and q8_0. What
       each wrote is compared with transformers in fp32: weights that are rounded may part after some tokens, so the
       length of the common beginning is shown. Peers that are not installed are left out.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

PEERS_ENVIRONMENT = dict(os.environ)  # before Linnet is imported, which sets something for its threads

from gguf_file import write_gguf  # noqa: E402
from jobs import SHAPES, write_weights  # noqa: E402
from turns import Candidate, CandidateError, Turns, describe_versions, figure, say, spread, table  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared/data"
SHORT, LONG = 32, 512  # tokens of the prompts


class Way(NamedTuple):
    """A candidate: who, in which precision, how many texts at once."""

    who: str
    precision: str
    texts: int = 1


WAYS = {
    "transformers-fp32-1": Way("transformers", "fp32"),
    "transformers-bf16-1": Way("transformers", "bf16"),
    "transformers-fp32-8": Way("transformers", "fp32", 8),
    "transformers-bf16-8": Way("transformers", "bf16", 8),
    "ctranslate2-int8-1": Way("ctranslate2", "int8"),
    "ctranslate2-int8-8": Way("ctranslate2", "int8", 8),
    "llama.cpp-f16-1": Way("llama.cpp", "f16"),
    "llama.cpp-q8_0-1": Way("llama.cpp", "q8_0"),
    "linnet-fp32-1": Way("linnet", "fp32"),
    "linnet-bf16-1": Way("linnet", "bf16"),
    "linnet-fp16-1": Way("linnet", "fp16"),
    "linnet-int8-1": Way("linnet", "int8"),
    "linnet-fp32-8": Way("linnet", "fp32", 8),
    "linnet-bf16-8": Way("linnet", "bf16", 8),
    "linnet-fp16-8": Way("linnet", "fp16", 8),
    "linnet-int8-8": Way("linnet", "int8", 8),
}
PACKAGES = {
    "llama.cpp": ("llama_cpp", "gguf"),
    "ctranslate2": ("ctranslate2", "transformers"),
    "transformers": ("transformers",),
}
# The goals: ours, the peer's, how many times as fast.
GOALS = (
    ("linnet-int8-1", "llama.cpp-q8_0-1", 1.2),
    ("linnet-bf16-1", "llama.cpp-f16-1", 1.0),
    ("linnet-bf16-8", "transformers-bf16-8", 3.0),
    ("linnet-fp16-1", "llama.cpp-f16-1", 1.0),  # Without bf16 products, 16 bits are these.
    ("linnet-fp16-8", "transformers-fp32-8", 3.0),
    ("linnet-int8-8", "transformers-fp32-8", 3.0),
)


# -- the candidates --------------------------------------------------------------------------------------------------


def work_on(name: str) -> None:
    """What the process of a candidate does: a step is one text of --new-tokens, or eight, and a long prompt."""
    turns, way = Turns(), WAYS[name]
    if way.who == "linnet":
        import linnet  # noqa: F401  (sets what `linnet` sets, before torch is imported)
    from writers import make_writer

    going = turns.wait()
    job = json.loads(Path("job.json").read_bytes())
    writer = make_writer(
        way.who,
        way.precision,
        folder=Path(job["model"]),
        gguf=Path(f"{way.precision}.gguf"),
        together=way.texts > 1,
    )
    short, long = job["short"], job["long"]
    number = 0
    while going:
        number += 1
        written = writer.write([short] * way.texts, job["new_tokens"])
        # Another beginning each time: a prompt that was read before is no measure.
        first = writer.first([long[number % len(long)], *long[1:]]) if way.texts == 1 else float("nan")
        Path(f"{name}.json").write_text(json.dumps(written.texts[0]))
        speed = way.texts * (job["new_tokens"] - 1) / written.seconds
        going = turns.step(tokens_per_s=speed, first_token_s=first)


# -- measuring -------------------------------------------------------------------------------------------------------


def missing() -> dict[str, str]:
    """Candidates that cannot be measured here, and why."""
    from linnet.device import cpu_has_bf16
    from linnet.generate.kernels import kernels

    reasons = {}
    for name, way in WAYS.items():
        for package in PACKAGES.get(way.who, ()):
            if importlib.util.find_spec(package) is None:
                reasons[name] = f"{package} is not installed"
        if way.precision == "bf16" and not cpu_has_bf16() and (way.who != "linnet" or kernels() is None):
            reasons[name] = "this CPU has no bf16 products"
        if way.precision == "fp16" and cpu_has_bf16():
            reasons[name] = "this CPU has bf16 products, which are faster"
    return reasons


def make_job(args: argparse.Namespace, work: Path) -> None:
    """The model in all its forms, and the prompts."""
    from linnet.tokenizer import Tokenizer

    folder = args.model
    if folder is None:
        if not args.tokenizer.is_dir():
            sys.exit(
                f"--tokenizer {args.tokenizer}: there is no such folder; name one with GPT-2's tokenizer.json."
            )
        folder = work / "weights"
        write_weights(folder, SHAPES["gpt2"], tokenizer=Tokenizer.load(args.tokenizer))
    kinds = {WAYS[name].precision for name in args.only if WAYS[name].who == "llama.cpp"}
    for kind in kinds - ({"f16", "q8_0"} if importlib.util.find_spec("gguf") is None else set()):
        write_gguf(folder, work / f"{kind}.gguf", quantization=kind)
    ids = [(7919 * i) % 50_000 for i in range(1, LONG + 1)]
    job = {"model": str(folder.resolve()), "short": ids[:SHORT], "long": ids, "new_tokens": args.new_tokens}
    (work / "job.json").write_text(json.dumps(job))


def run_rounds(args: argparse.Namespace, work: Path) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """The steps of each candidate, and why others have none."""
    reasons = missing()
    names = [name for name in WAYS if name in args.only and name not in reasons]
    script = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    environment = PEERS_ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    candidates = [Candidate(name, [*script, name], folder=work, environment=environment) for name in names]
    steps: dict[str, list[Any]] = defaultdict(list)
    try:
        for round_ in range(args.rounds):
            for candidate in [c for c in candidates if c.name not in reasons]:
                try:
                    turn = candidate.turn(warm=0 if candidate.is_running else 1, steps=1)
                except CandidateError as error:
                    reasons[candidate.name] = str(error)
                    say(f"{candidate.name} is left out: {error}")
                    continue
                step = turn["steps"][-1] | {"memory_gb": turn["memory_gb"]}
                steps[candidate.name].append(step)
                say(f"round {round_ + 1}, {candidate.name}: {step['tokens_per_s']:.1f} tokens/s")
    finally:
        for candidate in candidates:
            candidate.stop()
    return {name: found for name, found in steps.items() if name not in reasons}, reasons


# -- showing ---------------------------------------------------------------------------------------------------------


def alike(name: str, work: Path) -> str:
    """How many tokens at the beginning are those of transformers in fp32."""
    oracle, own = work / "transformers-fp32-1.json", work / f"{name}.json"
    if not oracle.is_file():
        return "?"
    pairs = list(zip(json.loads(oracle.read_bytes()), json.loads(own.read_bytes()), strict=True))
    return f"{len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))} of {len(pairs)}"


def show(
    steps: dict[str, list[Any]], reasons: dict[str, str], *, work: Path, out: Any
) -> list[dict[str, Any]]:
    """Print the table; the figures for --json."""
    rows, figures = [], []
    for name, found in steps.items():
        speeds = [step["tokens_per_s"] for step in found]
        first = [step["first_token_s"] for step in found]
        figures.append(figure(name, "tokens/s", speeds))
        figures.append(figure(f"{name}-memory", "GB", [step["memory_gb"] for step in found]))
        cells = ["", "", ""]
        if WAYS[name].texts == 1:
            figures.append(figure(f"{name}-first-token", "s", first))
            cells = spread(first, ".3f")
        rows.append(
            [name, *spread(speeds, ".1f"), *cells, f"{found[-1]['memory_gb']:.2f}", alike(name, work)]
        )
    titles = ["", "tokens/s min", "median", "max", "first token, s min", "median", "max", "GB", "as fp32"]
    print(describe_versions(), table(titles, rows), sep="\n", file=out)
    for ours, theirs, wanted in GOALS:
        if ours in steps and theirs in steps:
            ratios = [
                a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(steps[ours], steps[theirs], strict=True)
            ]
            figures.append(figure(f"{ours}-times-{theirs}", "times", ratios))
            low, middle, high = spread(ratios, ".2f")
            print(f"{ours} is {middle} times {theirs} ({low} to {high}); goal {wanted}", file=out)
    for name, reason in reasons.items():
        print(f"{name} is missing: {reason}", file=out)
    return figures


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model folder; default: 124M random weights")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "gpt2-tokenizer", help="of random weights")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help=", ".join(WAYS)
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, the table on stderr")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if args.worker:
        work_on(args.worker)
        return
    with tempfile.TemporaryDirectory(prefix="generate-") as temporary:
        work = Path(temporary)
        make_job(args, work)
        steps, reasons = run_rounds(args, work)
        out = sys.stderr if args.json else sys.stdout
        figures = show(steps, {n: r for n, r in reasons.items() if n in args.only}, work=work, out=out)
    if args.json:
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
