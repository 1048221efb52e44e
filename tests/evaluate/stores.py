"""Token stores with learn flags of any kind, written without preparing anything."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from linnet.data.store import Store, token_type
from linnet.tokenizer import Tokenizer

Part = tuple[str, bool]


def encode(tokenizer: Tokenizer, parts: Sequence[Part]) -> tuple[list[int], list[int]]:
    """`[end-of-text] + parts`, and end-of-text behind each part that is learned: ids and flags."""
    ids, learn = [tokenizer.end_of_text], [0]
    for text, learned in parts:
        part = tokenizer.encode(text) + [tokenizer.end_of_text] * learned
        ids += part
        learn += [int(learned)] * len(part)
    return ids, learn


def written_store(
    folder: Path,
    examples: Sequence[Sequence[Part]],
    *,
    tokenizer: Tokenizer,
    format: str = "instruct",
) -> Store:
    """A store of examples, each a list of (text, learned)."""
    folder.mkdir(parents=True)
    encoded = [encode(tokenizer, parts) for parts in examples]
    starts = np.cumsum([0, *(len(ids) for ids, _ in encoded)])
    np.save(folder / "examples.npy", starts)
    kind = token_type(tokenizer.vocab_size)
    np.array([token for ids, _ in encoded for token in ids], kind).tofile(folder / "tokens.bin")
    np.array([flag for _, learn in encoded for flag in learn], np.uint8).tofile(folder / "learn.bin")
    known = {"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text}
    return Store(folder, {**known, "format": format, "fingerprint": "", "notes": []})
