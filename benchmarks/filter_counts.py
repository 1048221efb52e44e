"""What each filter does to real rows: the table of docs/filters.md.

What  Each rule of `data.filters` alone, at a setting that docs/filters.md recommends: rows dropped, rows changed,
      characters cut, and megabytes of text for a second of processor time.
Why   A filter that removes good rows is worse than none: look before you switch one on.
How   python benchmarks/filter_counts.py [--data ../shared/data] [--json]
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np

from linnet.config import FiltersConfig
from linnet.data.duplicates import near_duplicates, sketches
from linnet.data.filters import Filters
from linnet.turns.template import Turn

RULES = {
    "shortest": FiltersConfig(shortest=20),
    "repetition": FiltersConfig(repetition=0.3),
    "symbols": FiltersConfig(symbols=0.1),
    "digits": FiltersConfig(digits=0.15),
    "language": FiltersConfig(language=["en"]),
    "boilerplate": FiltersConfig(boilerplate=True),
    "references": FiltersConfig(references=True),
    "citations": FiltersConfig(citations=True),
    "formulas": FiltersConfig(formulas=True),
}


def corpora(data: Path) -> dict[str, list[list[Turn]]]:
    """Rows as turns: articles, questions with answers, dialogues, novels (a file is a row), lines of a play."""

    def read(path: str) -> list[dict]:
        return [json.loads(line) for line in (data / path).read_text(encoding="utf-8").splitlines()]

    novels = [data / "text" / "war_and_peace.txt", *sorted((data / "text" / "novels").glob("*.txt"))]
    play = (data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8").splitlines()
    return {
        "papers": [
            [Turn("system", row["title"]), Turn("user", row["abstract"]), Turn("assistant", row["article"])]
            for row in read("papers/plos.jsonl")
        ],
        "math": [
            [Turn("user", row["question"]), Turn("assistant", row["answer"])]
            for row in read("math/gsm8k_train.jsonl")
        ],
        "chat": [
            [Turn(turn["role"], turn["content"]) for turn in row["messages"]]
            for row in read("chat/sgd_train.jsonl")
        ],
        "novels": [[Turn("text", path.read_text(encoding="utf-8-sig"))] for path in novels],
        "lines": [[Turn("text", line)] for line in play if line],
    }


def count(rows: list[list[Turn]], config: FiltersConfig) -> dict[str, float]:
    """One rule over all rows."""
    filters = Filters(config)
    started = time.process_time()
    verdicts = [filters(row) for row in rows]
    seconds = time.process_time() - started
    size = sum(len(turn.text) for row in rows for turn in row)
    left = sum(len(turn.text) for verdict in verdicts for turn in verdict.turns)
    return {
        "dropped": sum(bool(verdict.dropped) for verdict in verdicts),
        "changed": sum(bool(verdict.changed) for verdict in verdicts),
        "cut, %": round(100 * (size - left) / size, 3),
        "MB/s": round(size / seconds / 1e6, 1),
    }


def duplicates(rows: list[list[Turn]]) -> dict[str, dict[str, float]]:
    """Equal rows, rows near an earlier one at 0.8, and training rows near a tenth held out by hash."""
    texts = ["\n".join(turn.text for turn in row) for row in rows]
    size = sum(map(len, texts))
    started = time.process_time()
    found = sketches(texts)
    rate = {"changed": 0, "cut, %": 0, "MB/s": round(size / (time.process_time() - started) / 1e6, 1)}
    held_out = np.array([hashlib.blake2b(text.encode()).digest()[0] < 26 for text in texts])
    none = np.zeros(len(texts), dtype=bool)
    return {
        "exact_duplicates": rate | {"dropped": len(texts) - len(set(texts)), "MB/s": float("nan")},
        "near_duplicates": rate
        | {"dropped": int(near_duplicates(found, threshold=0.8, held_out=none).sum())},
        "near a held-out row": rate
        | {"dropped": int(near_duplicates(found, threshold=0.0, held_out=held_out).sum())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    table = {
        name: {rule: count(rows, config) for rule, config in RULES.items()} | duplicates(rows)
        for name, rows in corpora(args.data).items()
    }
    if args.json:
        results = [
            {"name": f"linnet {name} {rule}", "unit": unit, "min": value, "median": value, "max": value}
            for name, rules in table.items()
            for rule, figures in rules.items()
            for unit, value in figures.items()
            if value == value
        ]
        print(json.dumps(results, indent=1))
        return
    print(f"| rule | {' | '.join(table)} |\n|---{'|---' * len(table)}|")
    for rule in [*RULES, "exact_duplicates", "near_duplicates", "near a held-out row"]:
        figures = [rules[rule] for rules in table.values()]
        cells = [
            f"{f['dropped']:.0f} / {f['changed']:.0f} / {f['cut, %']:.2f} %; {f['MB/s']:.0f}" for f in figures
        ]
        print(f"| {rule} | {' | '.join(cells)} |".replace("; nan", ""))


if __name__ == "__main__":
    main()
