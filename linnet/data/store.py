"""The token store: a folder of prepared data, opened without reading it into memory.

What   tokens.bin (uint16, uint32 above 65,535 ids), learn.bin (uint8 for each token), examples.npy (int64: where each
       example starts, and the total), manifest.json, quarantine.jsonl, tokenizer/, and in validation/ the held-out
       part in the same form. rows-<block_size>.npy (the packing) comes when it is first needed.
Why    Training needs any token at once and no parsing; the arrays are memory maps.
How    `StoreWriter` appends to one part in bounded memory; `Store.open` reads it, and checks every hash.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet import files
from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer

KIND = "token store"
LARGEST_UINT16_VOCABULARY = 65_535


class Store:
    """One part (training, or held-out) of a token store.

    Attributes:
        tokens: [N] ids; learn: [N] 1 where the token is a target that is learned.
        examples: [E + 1] first token of each example, then N.
        manifest: what manifest.json holds; `counts`, `sources`, `notes` are its useful keys.
        validation: the held-out part, or None.
        fingerprint: sha256 over tokens, flags, examples and tokenizer, of the held-out part as well.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.format: str = manifest["format"]
        self.vocab_size: int = manifest["vocab_size"]
        self.end_of_text: int = manifest["end_of_text"]
        self.fingerprint: str = manifest["fingerprint"]
        self.notes: list[str] = list(manifest["notes"])
        self.tokens = _map(folder / "tokens.bin", token_type(self.vocab_size))
        self.learn = _map(folder / "learn.bin", np.dtype(np.uint8))
        self.examples: npt.NDArray[np.int64] = np.load(folder / "examples.npy", mmap_mode="r")
        nested = folder / "validation"
        self.validation: Store | None = (
            Store(nested, files.read_manifest(nested)) if nested.is_dir() else None
        )

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Store:
        """Open a store; with `verify` every byte is compared with the manifest's hashes (about 1 s for 1 GB).

        Raises:
            LinnetError: no store there, or a file is damaged.
        """
        manifest = files.verify_manifest(folder) if verify else files.read_manifest(folder)
        if manifest.get("kind") != KIND:
            raise LinnetError(
                f"{folder} is not prepared data; run `linnet prepare`, or set another data.prepared."
            )
        return cls(folder, manifest)

    @property
    def pairs(self) -> int:
        """(input, target) pairs: an example of n ids has n - 1."""
        return len(self.tokens) - (len(self.examples) - 1)

    @property
    def longest(self) -> int:
        """Most pairs of one example."""
        return int(np.diff(self.examples).max(initial=1)) - 1

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        here = self.folder / "tokenizer"
        return Tokenizer.load(here if here.is_dir() else self.folder.parent / "tokenizer")


def token_type(vocab_size: int) -> np.dtype[Any]:
    """uint16, or uint32 for more than 65,535 ids; little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= LARGEST_UINT16_VOCABULARY else "<u4")


def _map(path: Path, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, kind)  # an empty file cannot be mapped
    return np.memmap(path, dtype=kind, mode="r")


class StoreWriter:
    """Append examples to one part of a store, in bounded memory; use it in a `with` block, then `finish`.

    Attributes:
        counts: rows, examples, tokens, learned_tokens, bytes (of the text, in UTF-8).
    """

    def __init__(self, folder: Path, *, tokenizer: Tokenizer) -> None:
        files.make_folder(folder)
        self.folder = folder
        self._tokenizer = tokenizer
        self._type = token_type(tokenizer.vocab_size)
        self._tokens = files.Writer(folder / "tokens.bin")
        self._learn = files.Writer(folder / "learn.bin")
        # The header of examples.npy holds their number, which is known at the end.
        self._starts = files.Writer(folder / "examples.raw")
        self.counts = {"rows": 0, "examples": 0, "tokens": 0, "learned_tokens": 0, "bytes": 0}

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *reason: Any) -> None:
        for writer in (self._tokens, self._learn, self._starts):
            writer.__exit__(*reason)

    def begin(self) -> None:
        """The next token is the first of an example."""
        self._starts.write(self.counts["tokens"].to_bytes(8, "little"))
        self.counts["examples"] += 1

    def add(self, ids: Sequence[int], learn: int | Sequence[int]) -> None:
        """Append tokens to the example that was begun; `learn` is one flag for all or one for each."""
        self._tokens.write(np.asarray(ids, self._type).tobytes())
        flags = bytes([learn]) * len(ids) if isinstance(learn, int) else bytes(learn)
        self._learn.write(flags)
        self.counts["tokens"] += len(ids)
        self.counts["learned_tokens"] += flags.count(1)

    def add_examples(self, examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Append whole examples, each (ids, one flag for each)."""
        if not examples:
            return
        ends = np.cumsum([len(ids) for ids, _ in examples], dtype="<i8") + self.counts["tokens"]
        self._starts.write(np.concatenate([[self.counts["tokens"]], ends[:-1]]).astype("<i8").tobytes())
        self.counts["examples"] += len(examples)
        flags = bytes(chain.from_iterable(learn for _, learn in examples))
        self.add(list(chain.from_iterable(ids for ids, _ in examples)), flags)

    def finish(self, *, extra: Mapping[str, Any]) -> str:
        """Write examples.npy, quarantine.jsonl and manifest.json (with `extra`) after the block; the fingerprint."""
        raw = self.folder / "examples.raw"
        hashes = {
            "tokens.bin": self._tokens.sha256,
            "learn.bin": self._learn.sha256,
            "examples.npy": files.write_file(self.folder / "examples.npy", self._npy(raw)),
        }
        files.operations.unlink(raw)
        files.write_file(self.folder / "quarantine.jsonl", [])
        identity = [hashes[name] for name in sorted(hashes)]
        identity += [self._tokenizer.fingerprint, str(extra.get("validation_fingerprint", ""))]
        fingerprint = hashlib.sha256("\n".join(identity).encode()).hexdigest()
        body = {
            "kind": KIND,
            "fingerprint": fingerprint,
            "counts": self.counts,
            "vocab_size": self._tokenizer.vocab_size,
            "end_of_text": self._tokenizer.end_of_text,
            "tokenizer": self._tokenizer.fingerprint,
            "dtype": self._type.name,
        }
        files.write_manifest(self.folder, extra={**body, **extra}, hashes=hashes)
        return fingerprint

    def _npy(self, raw: Path) -> Iterator[bytes]:
        """The bytes of examples.npy: its header, the starts from `raw`, the total."""
        header = io.BytesIO()
        shape = (self.counts["examples"] + 1,)
        np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
        yield header.getvalue()
        with raw.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
        yield self.counts["tokens"].to_bytes(8, "little")


def same_json(left: Any, right: Any) -> bool:
    """Whether two values are the same once written as JSON."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
