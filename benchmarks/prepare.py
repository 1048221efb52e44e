"""Preparing: `linnet prepare` against nanoGPT's way, on novels, chats and questions with answers.

What  Both turn the same rows into GPT-2's ids on the disk, as whole processes from start to exit, in turn on the same
      machine, with nothing kept from the round before. Beside the whole process, the time of the work alone (from
      after the imports to the end) is measured in a run of its own.
Why   Text that is larger than the memory, or just large, should not have to wait for its tokens.
How   python benchmarks/prepare.py --data ../shared/data [--rounds 5] [--memory] [--json]

      nanoGPT's way is the method of its data/openwebtext/prepare.py, written anew here: `datasets.map` with tiktoken,
      2 processes, then shard by shard into a memory-mapped file. Its rows are plain texts that were made before the
      clock started (a novel; a conversation; a question with its answer). Ours starts from the published files and
      does more: templates, learn flags, windows of 1,024, a held-out split by content, duplicates, filters, hashes.

      linnet-prepare-fast has the optional gigatoken, linnet-prepare-plain has not. MB/s are bytes of our source files
      by seconds, for both. `--memory`: the largest memory of all processes together, for the data once and 8 times.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

CORPORA = {"novels": "text", "chats": "chat", "math": "math"}  # name -> our recipe
SYSTEMS = ("linnet-prepare-fast", "linnet-prepare-plain", "nanogpt-prepare")
SHARDS = 1024
REPOSITORY = Path(__file__).resolve().parent.parent

# In a process of its own, with the arguments that the command line has.
OURS = """
import json, sys, time
from linnet import api
started = time.perf_counter()
api.prepare(sys.argv[1], overrides=sys.argv[2:])
print(json.dumps({"work_s": time.perf_counter() - started}))
"""


# -- nanoGPT's way -------------------------------------------------------------------------------------------------


def register_gpt2(folder: Path) -> None:
    """Make `tiktoken.get_encoding("gpt2")` work without a download, from vocab.json."""
    import tiktoken
    from tiktoken import registry

    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in letters]
    to_byte = {chr(b): b for b in letters} | {chr(256 + i): b for i, b in enumerate(others)}
    end = "<|endoftext|>"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    registry.ENCODINGS["gpt2"] = tiktoken.Encoding(
        "gpt2",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        mergeable_ranks={bytes(to_byte[c] for c in word): i for word, i in vocabulary.items() if word != end},
        special_tokens={end: vocabulary[end]},
    )


def nanogpt_way(rows: Path, tokenizer: Path, out: Path) -> None:
    """Rows {"text"} of a JSON Lines file -> train.bin and val.bin of 16-bit ids; prints the seconds of the work."""
    import datasets
    import numpy as np
    import tiktoken

    started = time.perf_counter()
    register_gpt2(tokenizer)
    encoding = tiktoken.get_encoding("gpt2")

    def process(row: dict[str, str]) -> dict[str, object]:
        ids = [*encoding.encode_ordinary(row["text"]), encoding.eot_token]
        return {"ids": ids, "len": len(ids)}

    data = datasets.load_dataset("json", data_files=str(rows), split="train")
    parts = data.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    tokenized = parts.map(process, remove_columns=["text"], num_proc=2)
    for name, part in tokenized.items():
        length = int(np.sum(part["len"], dtype=np.uint64))
        target = np.memmap(out / f"{name}.bin", dtype=np.uint16, mode="w+", shape=(length,))
        shards, done = min(SHARDS, len(part)), 0
        for shard in range(shards):
            piece = part.shard(num_shards=shards, index=shard, contiguous=True).with_format("numpy")
            ids = np.concatenate(piece["ids"])
            target[done : done + len(ids)] = ids
            done += len(ids)
        target.flush()
    print(json.dumps({"work_s": time.perf_counter() - started}))


# -- the data ------------------------------------------------------------------------------------------------------


def sources(data: Path) -> dict[str, list[Path]]:
    """The published files of each corpus."""
    return {
        "novels": sorted((data / "text/novels").glob("*.txt")),
        "chats": [data / "chat/sgd_train.jsonl"],
        "math": [data / "math/gsm8k_train.jsonl"],
    }


def row_text(row: Mapping[str, object]) -> str:
    """The plain text of a row, as nanoGPT would have it."""
    if "messages" in row:
        messages: Iterable[Mapping[str, str]] = row["messages"]  # type: ignore[assignment]
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return f"{row['question']}\n{row['answer']}"


def lay_out(paths: list[Path], folder: Path, *, copies: int) -> tuple[Path, Path]:
    """Our sources, `copies` times with a word that makes each copy another; and nanoGPT's rows of them."""
    ours = folder / "ours"
    ours.mkdir(parents=True)
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as texts:
        for copy in range(copies):
            for path in paths:
                target = ours / f"{copy}-{path.name}"
                if path.suffix == ".txt":
                    target.write_bytes(path.read_bytes())
                    texts.write(json.dumps({"text": path.read_text(encoding="utf-8-sig")}) + "\n")
                    continue
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                if copy:  # the first copy stays as it was published
                    lines = [
                        line.replace('"question": "', f'"question": "({copy}) ', 1).replace(
                            '"content": "', f'"content": "({copy}) ', 1
                        )
                        for line in lines
                    ]
                target.write_text("".join(lines), encoding="utf-8")
                texts.writelines(json.dumps({"text": row_text(json.loads(line))}) + "\n" for line in lines)
    return ours, rows


# -- measuring -----------------------------------------------------------------------------------------------------


class Bench:
    """Where things lie, and how each system is started."""

    def __init__(self, tokenizer: Path, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder
        blocked = folder / "without"
        blocked.mkdir()
        (blocked / "gigatoken.py").write_text('raise ImportError("left out by the benchmark")\n')
        self.blocked = str(blocked)

    def start(
        self,
        system: str,
        corpus: str,
        paths: tuple[Path, Path],
        *,
        only_work: bool,
        peak: Callable[[int], int] | None = None,
    ) -> tuple[float, float, int]:
        """Run once from cold: seconds of the process, seconds of the work (0 if not asked), result of `peak`."""
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            out = Path(temporary)
            environment = os.environ | {"HF_HOME": str(out / "cache"), "HF_HUB_OFFLINE": "1"}
            if system == "nanogpt-prepare":
                inner = ["--nanogpt-way", str(paths[1]), str(self.tokenizer), str(out)]
                command = [sys.executable, __file__, *inner]
            else:
                overrides = [
                    f"data.source={paths[0]}",
                    f"data.prepared={out / 'prepared'}",
                    f"tokenizer.name={self.tokenizer}",
                    "model.init_from=scratch",
                    "train.block_size=1024",
                ]
                head = ["-c", OURS] if only_work else ["-m", "linnet", "prepare"]
                command = [sys.executable, *head, CORPORA[corpus], *overrides]
                path = self.blocked if system == "linnet-prepare-plain" else ""
                environment["PYTHONPATH"] = os.pathsep.join(p for p in (path, str(REPOSITORY)) if p)
            with (out / "log.txt").open("wb") as log:
                started = time.perf_counter()
                process = subprocess.Popen(
                    command, cwd=out, env=environment, stdout=subprocess.PIPE, stderr=log
                )
                most = peak(process.pid) if peak else 0
                output, _ = process.communicate()
                wall = time.perf_counter() - started
            if process.returncode != 0:
                sys.exit(f"{' '.join(command)}\n{(out / 'log.txt').read_text(errors='replace')[-3000:]}")
        lines = output.decode().splitlines()
        work = json.loads(lines[-1])["work_s"] if lines and lines[-1].startswith('{"work_s"') else 0.0
        return wall, work, most


def peak_memory(pid: int) -> int:
    """The largest sum of memory of a process and its children until it ends, in bytes; shared pages count once."""
    import psutil

    most = 0
    root = psutil.Process(pid)
    while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
        total = 0
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        most = max(most, total)
        time.sleep(0.05)
    return most


def speeds(bench: Bench, data: Mapping[str, list[Path]], *, rounds: int) -> dict[str, list[float]]:
    """Name of a measure -> MB/s in each round."""
    found: dict[str, list[float]] = defaultdict(list)
    laid = {corpus: lay_out(paths, bench.folder / corpus, copies=1) for corpus, paths in data.items()}
    megabytes = {corpus: sum(p.stat().st_size for p in paths) / 1e6 for corpus, paths in data.items()}
    for round_ in range(rounds):
        for system in SYSTEMS:
            walls, works = {}, {}
            for corpus, paths in laid.items():
                wall, work, _ = bench.start(system, corpus, paths, only_work=False)
                if not work:
                    _, work, _ = bench.start(system, corpus, paths, only_work=True)
                walls[corpus], works[corpus] = wall, work
                found[f"{system}-{corpus}"].append(megabytes[corpus] / wall)
                found[f"{system}-{corpus}-work"].append(megabytes[corpus] / work)
            found[system].append(sum(megabytes.values()) / sum(walls.values()))
            found[f"{system}-work"].append(sum(megabytes.values()) / sum(works.values()))
            shown = ", ".join(f"{c} {walls[c]:.2f} s ({works[c]:.2f})" for c in laid)
            print(f"round {round_ + 1}, {system}: {shown}", file=sys.stderr, flush=True)
    return found


def memories(bench: Bench, data: Mapping[str, list[Path]]) -> list[dict[str, object]]:
    """Peak memory for the data once and 8 times."""
    rows = []
    for corpus, paths in data.items():
        for copies in (1, 8):
            laid = lay_out(paths, bench.folder / f"{corpus}-{copies}", copies=copies)
            for system in SYSTEMS:
                wall, _, most = bench.start(system, corpus, laid, only_work=False, peak=peak_memory)
                name = f"{system}-memory-{corpus}-{copies}x"
                print(f"{name}: {most / 1e6:.0f} MB, {wall:.1f} s", file=sys.stderr, flush=True)
                rows.append(figure(name, "MB", [most / 1e6]))
    return rows


def figure(name: str, unit: str, values: list[float]) -> dict[str, object]:
    """min, median and max of a measure."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return {
        "name": name,
        "unit": unit,
        "min": round(low, 3),
        "median": round(middle, 3),
        "max": round(high, 3),
    }


def print_table(rows: list[dict[str, object]]) -> None:
    """The figures, and how many times nanoGPT's way each of ours is."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{'':40}{'unit':>6}{'min':>10}{'median':>10}{'max':>10}{'times':>8}")
    median = {str(row["name"]): float(str(row["median"])) for row in rows}
    for row in rows:
        name = str(row["name"])
        peer = "nanogpt-prepare" + name.removeprefix("linnet-prepare-fast").removeprefix(
            "linnet-prepare-plain"
        )
        times = f"{median[name] / median[peer]:8.2f}" if name.startswith("linnet") and peer in median else ""
        print(f"{name:40}{row['unit']!s:>6}{row['min']:>10}{row['median']:>10}{row['max']:>10}{times}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY.parent / "shared/data", help="novels, chats, math"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(CORPORA), help="one corpus; may be repeated")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--nanogpt-way", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.nanogpt_way:
        return nanogpt_way(*args.nanogpt_way)

    data = {name: paths for name, paths in sources(args.data).items() if name in (args.only or CORPORA)}
    with tempfile.TemporaryDirectory(prefix="prepare-") as temporary:
        bench = Bench((args.data / "gpt2-tokenizer").resolve(), Path(temporary))
        rows = [
            figure(name, "MB/s", values) for name, values in speeds(bench, data, rounds=args.rounds).items()
        ]
        if args.memory:
            rows += memories(bench, data)
    if args.json:
        return print(json.dumps(rows, indent=2))
    return print_table(rows)


if __name__ == "__main__":
    main()
