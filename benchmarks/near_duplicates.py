"""Near duplicates: which MinHash library, and what Linnet makes of it.

What  Sketches of real and made rows by rensa, datasketch and gaoya, and by `linnet.data.duplicates` (rensa
      on shingles hashed by numpy). Speed in MB/s and rows/s, memory that the sketches keep, and on planted pairs of
      known likeness: how many of those at 0.8 or more are called near (recall), and how many of those called near
      are (precision). Truth is the exact Jaccard index of sets of five-word shingles.
Why   The check of training rows against held-out ones always runs: it has to cost little and find nearly all.
How   python benchmarks/near_duplicates.py [--data ../shared/data] [--rounds 3] [--seconds 3] [--rows 100000] [--json]
      Each library runs in a process of its own, 64 numbers a sketch, in turn over the rounds; it reads a corpus from
      the start until it is through or --seconds are over. A second is one of processor time, of all threads together:
      other programs on the machine do not count. The bytes that a sketch keeps are the growth of the process; a
      small figure is noise (ours has 128). A library that is not installed is left out.
"""

import argparse
import importlib.util
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

NUMBERS = 64
SHINGLE = 5
NEAR = 0.8


def shingles(text: str) -> list[str]:
    """What a library is given that brings no words of its own."""
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]


def exact_jaccard(left: str, right: str) -> float:
    one, other = set(shingles(left)), set(shingles(right))
    return len(one & other) / len(one | other)


@dataclass(frozen=True)
class Library:
    """sketch: n texts -> [n, NUMBERS] or any list of n; near: two of these lists -> n truth values."""

    module: str
    sketch: Callable[[Sequence[str]], object]
    near: Callable[[Sequence[str], Sequence[str]], Sequence[bool]]


def agree(
    sketch: Callable[[Sequence[str]], object],
) -> Callable[[Sequence[str], Sequence[str]], Sequence[bool]]:
    """Near by the share of equal numbers."""
    return lambda left, right: (np.asarray(sketch(left)) == np.asarray(sketch(right))).mean(axis=1) >= NEAR


def linnet_sketch(texts: Sequence[str]) -> object:
    from linnet.data.duplicates import sketches

    return sketches(texts)


def rensa_sketch(texts: Sequence[str]) -> object:
    import rensa

    matrix = rensa.RMinHash.digest_matrix_from_token_sets([shingles(text) for text in texts], NUMBERS, 1)
    return matrix.to_rows()


def datasketch_sketch(texts: Sequence[str]) -> object:
    import datasketch

    tokens = [[shingle.encode() for shingle in shingles(text)] for text in texts]
    return [found.hashvalues for found in datasketch.MinHash.generator(tokens, num_perm=NUMBERS, seed=1)]


def gaoya_index(texts: Sequence[str]) -> object:
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=32, jaccard_threshold=NEAR, num_bands=12, band_size=5, analyzer="word", ngram_range=(5, 5)
    )
    for number, text in enumerate(texts):
        index.insert_document(number, text.lower())
    return index


def gaoya_near(left: Sequence[str], right: Sequence[str]) -> Sequence[bool]:
    index: object = gaoya_index(left)
    return [number in index.query(text.lower()) for number, text in enumerate(right)]  # type: ignore[attr-defined]


LIBRARIES = {
    "linnet (rensa)": Library("rensa", linnet_sketch, agree(linnet_sketch)),
    "rensa": Library("rensa", rensa_sketch, agree(rensa_sketch)),
    "datasketch": Library("datasketch", datasketch_sketch, agree(datasketch_sketch)),
    "gaoya": Library("gaoya", gaoya_index, gaoya_near),
}


def corpora(data: Path, rows: int) -> dict[str, list[str]]:
    """Real rows, and made ones of 10 to 120 words drawn from the real ones."""

    def read(path: str) -> list[dict]:
        return [json.loads(line) for line in (data / path).read_text(encoding="utf-8").splitlines()]

    math = [f"{row['question']} {row['answer']}" for row in read("math/gsm8k_train.jsonl")]
    draw = random.Random(1)
    words = " ".join(math).split()
    return {
        "math": math,
        "chat": [
            "\n".join(turn["content"] for turn in row["messages"]) for row in read("chat/sgd_train.jsonl")
        ],
        "papers": [row["article"] for row in read("papers/plos.jsonl")],
        "made": [" ".join(draw.choices(words, k=draw.randint(10, 120))) for _ in range(rows)],
    }


def planted(texts: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Originals and copies with words changed, a sentence added, case and punctuation changed."""
    draw = random.Random(2)
    originals = [text for text in texts if len(text.split()) >= 30][:count]
    copies = []
    for text in originals:
        words = text.split()
        for _ in range(draw.randrange(5)):
            words[draw.randrange(len(words))] = draw.choice(words)
        if draw.random() < 0.3:
            words += ["That", "is", "how", "it", "was", "in", "the", "end."]
        if draw.random() < 0.3:
            words = [word.upper() + "," for word in words]
        copies.append(" ".join(words))
    return originals, copies


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One library in this process: MB/s and rows/s by corpus, recall, precision, memory."""
    library = LIBRARIES[name]
    texts_of = corpora(args.data, args.rows)
    library.sketch(["a warm start of the library and of its threads, no more"] * 2)
    figures: dict[str, float] = {}
    for corpus, texts in texts_of.items():
        size, done, started = 0, 0, time.process_time()
        while done < len(texts) and time.process_time() - started < args.seconds:
            batch = texts[done : done + max(1, len(texts) // 50)]
            library.sketch(batch)
            done += len(batch)
            size += sum(len(text.encode()) for text in batch)
        seconds = time.process_time() - started
        figures[f"{corpus}, MB/s"] = size / seconds / 1e6
        figures[f"{corpus}, rows/s"] = done / seconds
    before = psutil.Process().memory_info().rss
    sketched = library.sketch(texts_of["made"][:5000])
    figures["made, bytes kept a row, bytes"] = (psutil.Process().memory_info().rss - before) / 5000
    del sketched
    for corpus in ("math", "chat"):
        originals, copies = planted(texts_of[corpus], 1500)
        exact = np.array([exact_jaccard(a, b) for a, b in zip(originals, copies, strict=True)])
        truth = exact >= NEAR
        near = np.asarray(library.near(originals, copies))
        figures[f"{corpus}, recall"] = float((near & truth).sum() / truth.sum())
        figures[f"{corpus}, recall of pairs at 0.9 and more"] = float(near[exact >= 0.9].mean())
        figures[f"{corpus}, precision"] = float((near & truth).sum() / max(1, near.sum()))
    return figures


def search(args: argparse.Namespace) -> dict[str, float]:
    """The whole check of `linnet.data.duplicates`: planted copies among made rows, a tenth of them held out."""
    from linnet.data.duplicates import near_duplicates, sketches

    texts = corpora(args.data, args.rows)["made"]
    originals, copies = planted(texts[::10], 1500)
    held_out = np.zeros(len(texts) + len(copies), dtype=bool)
    held_out[: len(texts) : 10] = True
    found = sketches([*texts, *copies])
    started = time.process_time()
    drop = near_duplicates(found, threshold=0.0, held_out=held_out)
    seconds = time.process_time() - started
    truth = [exact_jaccard(a, b) >= NEAR for a, b in zip(originals, copies, strict=True)]
    return {
        "search, rows/s": len(found) / seconds,
        "search, recall": float(drop[len(texts) :][truth].mean()),
        "search, rows dropped that nothing was planted of": float(drop[: len(texts)].sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each library and corpus")
    parser.add_argument("--rows", type=int, default=100_000, help="made rows")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(search(args) if args.only == "search" else measure(args.only, args)))
        return
    names = [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library.module)]
    series: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name in [*names, "search"]:
            options = [
                f"--data={args.data}",
                f"--seconds={args.seconds}",
                f"--rows={args.rows}",
                f"--only={name}",
            ]
            output = subprocess.run(
                [sys.executable, __file__, *options], check=True, capture_output=True, text=True
            )
            for what, figure in json.loads(output.stdout).items():
                series.setdefault(f"{'linnet (rensa)' if name == 'search' else name}: {what}", []).append(
                    figure
                )
            print(f"{name} done", file=sys.stderr)
    results = [
        {
            "name": what.rpartition(", ")[0] if what.endswith(("/s", "bytes")) else what,
            "unit": what.rpartition(", ")[2] if what.endswith(("/s", "bytes")) else "",
            "min": min(figures),
            "median": statistics.median(figures),
            "max": max(figures),
        }
        for what, figures in series.items()
    ]
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print("{name:45} {median:12.4g} {unit:8} ({min:.4g} to {max:.4g})".format(**result))


if __name__ == "__main__":
    main()
