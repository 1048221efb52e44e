"""Serving: many clients at once, by `transformers serve`, llama.cpp's server and `linnet serve`.

What   For 1, 8, 32 and 64 clients: tokens a second of all together, the waits for the first token and between tokens
       (half of them are below p50, all but one in a hundred below p99), memory at most; and what `linnet serve` holds
       before it loads a model, with it, and after it gave it back.
Why    A server is chosen by what many get at once, how long each waits, and what it costs while nobody asks.
How    python benchmarks/serve.py [--model FOLDER] [--clients 1 8 32 64] [--requests 64] [--new-tokens 64] [--rounds 5]
                                  [--llama-server PROGRAM] [--only NAME ...] [--short] [--json]

       Each server is a process of its own; they take turns at each level, round after round, and the others are stopped
       meanwhile (servers.py). All get the same prompts, new ones in each round and level, on /v1/completions, and write
       the likeliest tokens, exactly --new-tokens for each (clients.py). Peers that are not installed are left out.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PEERS_ENVIRONMENT = dict(os.environ)  # before Linnet is imported, which sets something for its threads

import psutil  # noqa: E402
from clients import LONGEST, Load, UnansweredError, ask_all, draw_prompts, percentile, read_pages  # noqa: E402
from gguf_file import write_gguf  # noqa: E402
from jobs import SHAPES, write_weights  # noqa: E402
from servers import (  # noqa: E402
    WAYS,
    Job,
    Server,
    body_of,
    default_names,
    describe,
    find_llama_server,
    missing,
)
from turns import CandidateError, describe_versions, figure, say, spread, table  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared/data"
WARM = 2  # requests that are not timed, in each turn; in a new process twice
MOST_OF_EACH = 8  # requests of one client in a turn
IDLE_SECONDS = 3.0
# At so many clients: by whom Linnet is divided, the fastest of them, and how many times as fast it should be.
GOAL_CLIENTS = 32
GOALS = {"transformers": 3.0, "llama.cpp": 1.0}


class Turn(NamedTuple):
    """A server's turn at one level."""

    load: Load
    memory_gb: float


Turns = dict[tuple[str, int], list[Turn]]
"""Of each candidate and number of clients, one for each round."""


# -- the job ---------------------------------------------------------------------------------------------------------


def make_job(args: argparse.Namespace, work: Path) -> tuple[Job, Any]:
    """The model in all its forms, and its tokenizer."""
    from linnet.model.pretrained import read_config
    from linnet.tokenizer import Tokenizer
    from linnet.tokenizer.make import train_bpe

    if args.model in SHAPES:
        shape, folder = SHAPES[args.model], work / "weights"
        if args.model.startswith("gpt2"):
            if not args.tokenizer.is_dir():
                sys.exit(f"--tokenizer {args.tokenizer}: there is no such folder.")
            tokenizer = Tokenizer.load(args.tokenizer)
        else:
            tokenizer = train_bpe(iter([read_pages()]), vocab_size=shape["vocab_size"])
        write_weights(folder, shape | {"vocab_size": tokenizer.vocab_size}, tokenizer=tokenizer)
    else:
        folder = Path(args.model).resolve()
        if not (folder / "config.json").is_file():
            sys.exit(f"--model {args.model} is neither a model folder nor one of {', '.join(SHAPES)}.")
    job = Job(
        folder=folder,
        work=work,
        end_of_text=Tokenizer.load(folder).end_of_text,
        window=read_config(folder).n_positions,
        new_tokens=args.new_tokens,
        llama_server=find_llama_server(args.llama_server),
    )
    for name in args.only:
        if WAYS[name].who == "llama.cpp" and name not in missing(job.llama_server):
            write_gguf(folder, work / f"{WAYS[name].precision}.gguf", quantization=WAYS[name].precision)
    return job, Tokenizer.load(folder)


# -- measuring -------------------------------------------------------------------------------------------------------


async def watch(server: Server, peak: list[int]) -> None:
    """Keep the highest memory of the server, for ever."""
    while True:
        peak.append(max(peak.pop(), server.memory(again=False)))
        await asyncio.sleep(0.1)


async def measure(server: Server, prompts: Sequence[str], *, clients: int, warm: int) -> Turn:
    """All prompts, after the first `warm`, which are not timed."""
    tokens = server.job.new_tokens
    bodies = [body_of(server.way, server.job, prompt) for prompt in prompts]
    await ask_all(server.address, bodies[:warm], clients=1, tokens=tokens)
    peak = [server.memory()]
    watching = asyncio.create_task(watch(server, peak))
    load = await ask_all(server.address, bodies[warm:], clients=clients, tokens=tokens)
    watching.cancel()
    return Turn(load, max(*peak, server.memory()) / 1e9)


def take_turn(server: Server, prompts: Sequence[str], *, clients: int) -> Turn:
    """Let it compute, alone. `prompts`: the first 2 * WARM are for warming up.

    Raises:
        CandidateError: it cannot be started, or it does not answer.
    """
    is_new = server.wake()
    warm = 2 * WARM if is_new else WARM
    try:
        turn = asyncio.run(measure(server, prompts[2 * WARM - warm :], clients=clients, warm=warm))
    except UnansweredError as error:
        server.last_words()
        raise CandidateError(str(error)) from error
    if psutil.virtual_memory().available > 2e9 + 2e9 * turn.memory_gb:
        server.sleep()
    else:
        server.stop()
    return turn


def run_rounds(args: argparse.Namespace, job: Job, tokenizer: Any) -> tuple[Turns, dict[str, str]]:
    """The turns of each candidate, and why others have none."""
    reasons = {name: why for name, why in missing(job.llama_server).items() if name in args.only}
    environment = PEERS_ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    servers = [Server(name, job, environment=environment) for name in args.only if name not in reasons]
    turns: Turns = defaultdict(list)
    try:
        for round_ in range(args.rounds):
            for clients in args.clients:
                count = 2 * WARM + max(clients, min(args.requests, MOST_OF_EACH * clients))
                longest = min(LONGEST, job.window - job.new_tokens)
                seed = 1000 * round_ + clients
                prompts = draw_prompts(tokenizer, count, longest=longest, seed=seed)
                for server in [one for one in servers if one.name not in reasons]:
                    try:
                        turn = take_turn(server, prompts, clients=clients)
                    except CandidateError as error:
                        reasons[server.name] = str(error)
                        say(f"{server.name} is left out: {error}")
                        server.stop()
                        continue
                    turns[server.name, clients].append(turn)
                    speed = turn.load.tokens_per_s
                    say(f"round {round_ + 1}, {clients} clients, {server.name}: {speed:.0f} tokens/s")
    finally:
        for server in servers:
            server.stop()
    return {key: found for key, found in turns.items() if key[0] not in reasons}, reasons


def measure_idle(name: str, job: Job, tokenizer: Any, *, times: int) -> dict[str, list[float]]:
    """GB that `linnet serve` holds before it loads its model, with it, and after it gave it back, `times` times."""
    environment = PEERS_ENVIRONMENT | {"HF_HUB_OFFLINE": "1"}
    server = Server(name, job, environment=environment, options=["--idle-minutes", str(IDLE_SECONDS / 60)])
    longest = min(LONGEST, job.window - job.new_tokens)
    found: dict[str, list[float]] = defaultdict(list)
    try:
        server.wake()
        found["started"].append(server.memory() / 1e9)
        for seed in range(times):
            prompts = draw_prompts(tokenizer, 8, longest=longest, seed=-1 - seed)
            turn = asyncio.run(measure(server, prompts, clients=8, warm=0))
            found["loaded"].append(turn.memory_gb)
            until = time.monotonic() + 20 * IDLE_SECONDS
            while server.get("/v1/models")["data"][0]["linnet"]["loaded"]:
                if time.monotonic() > until:
                    raise CandidateError("linnet serve has not given its model back")
                time.sleep(0.2)
            time.sleep(0.5)  # `loaded` is false a moment before the memory is given back.
            found["unloaded"].append(server.memory() / 1e9)
    finally:
        server.stop()
    return found


# -- showing ---------------------------------------------------------------------------------------------------------


def show(turns: Turns, *, out: Any) -> list[dict[str, Any]]:
    """Print the table of levels; the figures for --json."""
    rows, figures = [], []
    for (name, clients), found in sorted(turns.items(), key=lambda item: item[0][1]):
        loads = [turn.load for turn in found]
        speeds = [load.tokens_per_s for load in loads]
        figures.append(figure(f"{name}-{clients}", "tokens/s", speeds))
        cells = []
        for what, waits in (
            ("first-token", [load.first for load in loads]),
            ("between-tokens", [load.between for load in loads]),
        ):
            for share in (50, 99):
                values = [percentile(one, share / 100) for one in waits if one]
                if values:
                    figures.append(figure(f"{name}-{clients}-{what}-p{share}", "s", values))
                    cells.append(f"{1000 * figures[-1]['median']:.1f}")
                else:
                    cells.append("")
        figures.append(figure(f"{name}-{clients}-memory", "GB", [turn.memory_gb for turn in found]))
        cells.append(f"{figures[-1]['max']:.2f}")
        unfinished = sum(load.unfinished for load in loads)
        rows.append([name, str(clients), *spread(speeds, ".0f"), *cells, str(unfinished or "")])
    titles = ["", "clients", "tokens/s min", "median", "max", "first token, ms p50", "p99"]
    titles += ["between tokens, ms p50", "p99", "GB", "ended early"]
    print(table(titles, rows), file=out)
    return figures


def compare(turns: Turns, *, out: Any) -> list[dict[str, Any]]:
    """Print how many times as fast as each peer ours is, in the same rounds, and whether the goals are met."""
    figures, rows = [], []
    for (name, clients), found in sorted(turns.items(), key=lambda item: item[0][1]):
        ours = turns.get(("linnet", clients))
        if name == "linnet" or ours is None:
            continue
        ratios = [a.load.tokens_per_s / b.load.tokens_per_s for a, b in zip(ours, found, strict=True)]
        figures.append(figure(f"linnet-{clients}-times-{name}-{clients}", "times", ratios))
        rows.append([f"linnet by {name}", str(clients), *spread(ratios, ".2f")])
    if rows:
        print("", table(["", "clients", "times min", "median", "max"], rows), sep="\n", file=out)
    for kind, wanted in GOALS.items():
        start = f"linnet-{GOAL_CLIENTS}-times-{kind}"
        found_here = [one for one in figures if one["name"].startswith(start)]
        if found_here:
            least = min(found_here, key=lambda one: one["median"])
            verdict = "met" if least["median"] >= wanted else "not met"
            print(f"goal {wanted:g}, {verdict}: {least['name']} is {least['median']}", file=out)
    return figures


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    real = DATA / "base-30m"
    default = str(real) if real.is_dir() else "gpt2"
    shapes = ", ".join(SHAPES)
    parser.add_argument("--model", help=f"a model folder, or random weights: {shapes}; default: {default}")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "gpt2-tokenizer", help="of random weights")
    parser.add_argument("--clients", type=int, nargs="+", help="at once, by level; default: 1 8 32 64")
    parser.add_argument(
        "--requests",
        type=int,
        help=f"of a turn, at least one and at most {MOST_OF_EACH} of a client; default: 64",
    )
    parser.add_argument("--new-tokens", type=int, help="of each answer; default: 64")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's own program; else the one on the PATH")
    parser.add_argument("--only", nargs="+", choices=WAYS, metavar="NAME", help=", ".join(WAYS))
    parser.add_argument("--short", action="store_true", help="a small model and few requests")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, the table on stderr")
    args = parser.parse_args(arguments)
    long = {"model": default, "clients": [1, 8, 32, 64], "requests": 64, "new_tokens": 64, "rounds": 5}
    short = {"model": "small", "clients": [1, 4], "requests": 8, "new_tokens": 16, "rounds": 2}
    for key, value in (short if args.short else long).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.only = args.only or default_names()
    return args


def main() -> None:
    args = parse()
    # Servers that are stopped by a signal would stay for ever; so they end when this is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = sys.stderr if args.json else sys.stdout
    with tempfile.TemporaryDirectory(prefix="serve-") as temporary:
        job, tokenizer = make_job(args, Path(temporary))
        turns, reasons = run_rounds(args, job, tokenizer)
        idle = {}
        if "linnet" in args.only and "linnet" not in reasons:
            idle = measure_idle("linnet", job, tokenizer, times=args.rounds)
        print(describe_versions(), f"model: {args.model}", sep="\n", file=out)
        for name in dict.fromkeys(name for name, _ in turns):
            print(f"{name}: {describe(name, job)}", file=out)
    figures = show(turns, out=out) + compare(turns, out=out)
    for what, values in idle.items():
        figures.append(figure(f"linnet-memory-{what}", "GB", values))
        print(f"linnet, memory {what}: {' to '.join(spread(values, '.2f')[::2])} GB", file=out)
    for name, reason in reasons.items():
        print(f"{name} is missing: {reason}", file=out)
    if args.json:
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
