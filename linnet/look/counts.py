"""What a token store says of itself: counts, lengths, packing, and what was left out and why.

Why    These figures are those of the training, since they come from the data that it reads.
How    manifest.json has the counts, dropped.jsonl and quarantine.jsonl the rows, examples.npy the lengths.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from linnet.data.packing import pack
from linnet.data.reading.records import file_kind
from linnet.data.store import Store
from linnet.look.guess import shorten
from linnet.look.report import Edit, LeftOut, Lengths, Packing, Sample
from linnet.look.survey import EXCERPT, SHOWN, SeenRow
from linnet.turns.template import ANSWERER

if TYPE_CHECKING:
    from linnet.device import Choice

BINS = 12
LINES_READ = 200_000  # of dropped.jsonl and quarantine.jsonl: enough for reasons and samples


def documents_of(store: Store) -> int:
    """Sources that are one running text each."""
    if store.format != "text":
        return 0
    sources = store.manifest["sources"]
    return sum("path" in source and file_kind(Path(source["path"])) == "txt" for source in sources)


def sum_counts(store: Store) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """(all, training, held-out part). A document that is cut in two for the held-out part counts once."""
    training = dict(store.manifest["counts"])
    validation = dict(store.validation.manifest["counts"]) if store.validation else {}
    both = {key: training[key] + validation.get(key, 0) for key in training}
    if documents := documents_of(store):
        cut = len(store.examples) - 1 + (len(store.validation.examples) - 1 if store.validation else 0)
        rows = cut - sum(len(part.source_rows()) for part in (store, store.validation) if part)
        both["rows"] += documents - rows
    return both, training, validation


def row_ids(store: Store) -> set[int]:
    """Ids of all rows that are trained on or held out."""
    parts = [store, store.validation] if store.validation else [store]
    return {number for part in parts for number in part.source_rows()["id"].tolist()}


def kept_share(counts: dict[str, int]) -> float:
    """Source tokens that are present in an example / source tokens; of running text all are."""
    return counts["present_tokens"] / counts["source_tokens"] if counts["source_tokens"] else 1.0


def measure_lengths(store: Store) -> Lengths | None:
    """Tokens of all examples; None of running text, whose examples are whole files."""
    if documents_of(store):
        return None
    tokens, learned = [], []
    for part in (store, store.validation) if store.validation else (store,):
        tokens.append(np.diff(part.examples))
        learned.append(np.add.reduceat(part.learn, part.examples[:-1], dtype=np.int64))
    return lengths_of(np.concatenate(tokens), np.concatenate(learned))


def lengths_of(tokens: npt.NDArray[np.int64], learned: npt.NDArray[np.int64]) -> Lengths:
    """The histogram of [E] examples with so many tokens and learned tokens."""
    edges = bin_edges(int(np.percentile(tokens, 99)), int(tokens.max()))
    return Lengths(
        edges,
        _histogram(tokens, edges),
        _histogram(learned, edges),
        median=int(np.median(tokens)),
        usual=int(np.percentile(tokens, 95)),
        most=int(tokens.max()),
    )


def estimate(rows: Sequence[SeenRow]) -> dict[str, Any]:
    """Counts and lengths of rows where no tokenizer is at hand: a token is about four bytes of English.

    Headers and end-of-text are not counted.
    """
    every, learned = [], []
    for row in rows:
        sizes = [(turn.role, len(turn.text.encode())) for turn in row.cleaned]
        every.append(sum(count for _, count in sizes))
        learned.append(sum(count for role, count in sizes if role in ("text", ANSWERER)))
    tokens, targets = np.array(every, np.int64) // 4, np.array(learned, np.int64) // 4
    counts = {
        "rows": len(rows),
        "tokens": int(tokens.sum()),
        "learned_tokens": int(targets.sum()),
        "bytes": sum(every),
    }
    return {"counts": counts, "lengths": lengths_of(tokens, targets) if rows else None}


def bin_edges(usual: int, most: int) -> list[int]:
    """Edges of at most 12 bins of a round width; what few examples exceed falls into the last.

    >>> bin_edges(350, 400)
    [0, 50, 100, 150, 200, 250, 300, 350, 400, 450]
    """
    width = next(
        step * 10**power for power in range(12) for step in (1, 2, 5) if step * 10**power * (BINS - 1) > usual
    )
    if most < width * BINS:
        usual = most
    return [number * width for number in range(usual // width + 2)]


def _histogram(values: npt.NDArray[np.int64], edges: list[int]) -> list[int]:
    bins = np.minimum(values // edges[1], len(edges) - 2)
    counts: list[int] = np.bincount(bins, minlength=len(edges) - 1).tolist()
    return counts


def measure_packing(store: Store, block: Choice) -> Packing:
    """How full rows of `block` tokens are. Running text fills every row."""
    size = int(block.value)
    if store.format == "text":
        return Packing(size, block.reason, store.pairs // size, 1.0)
    packed = pack(store, size)
    rows = int(packed[-1, 0]) + 1 if len(packed) else 0
    return Packing(size, block.reason, rows, float(packed[:, 2].sum() / (rows * size)) if rows else 1.0)


def left_out(store: Store, changed_samples: dict[str, list[Edit]]) -> LeftOut:
    """What was dropped, changed and set aside, with the first rows of each."""
    manifest = store.manifest
    dropped = {rule: count for rule, count in manifest["dropped"].items() if count}
    samples: dict[str, list[Sample]] = {}
    for entry in _entries(store.folder / "dropped.jsonl"):
        shown = samples.setdefault(entry["rule"], [])
        if len(shown) < SHOWN:
            place = entry["place"].rpartition(":")[0]  # without the byte
            shown.append(Sample(entry["id"], place, shorten(entry["text"], EXCERPT)))
    reasons: Counter[str] = Counter()
    bad: list[Sample] = []
    for entry in _entries(store.folder / "quarantine.jsonl"):
        reasons[entry["reason"]] += 1
        if len(bad) < SHOWN:
            place = f"{entry['file']}:{entry['line']}"
            bad.append(Sample("", place, shorten(entry["text"], EXCERPT), entry["reason"]))
    return LeftOut(
        dropped=dropped,
        dropped_samples=samples,
        changed={rule: count for rule, count in manifest["changed"].items() if count},
        changed_samples=changed_samples,
        quarantined=manifest["quarantined"],
        reasons=dict(reasons.most_common()),
        quarantine=bad,
    )


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, islice(file, LINES_READ))
