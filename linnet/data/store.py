"""The token store: a folder of prepared data, opened without reading it into memory.

What   tokens.bin (uint16, uint32 above 65,535 ids), learn.bin (uint8 for each token), examples.npy (int64: where each
       example starts, and the total), rows.npy (the rows that they come from), manifest.json, quarantine.jsonl and
       dropped.jsonl (the rows that were left out, and why), tokenizer/, and in validation/ the held-out part in the
       same form. rows-<block_size>.npy (the packing) comes when it is first needed.
Why    Training needs any token at once and no parsing; the arrays are memory maps.
How    `StoreWriter` appends to one part in bounded memory; `Store.open` reads it, and checks every hash.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
COUNTS = (
    *("rows", "examples", "tokens", "learned_tokens", "bytes"),
    *("source_tokens", "present_tokens", "windowed", "shortened"),
)
# A row of the source: its id (see map.row_id), its first example, and how many it became.
STORED_ROW = np.dtype([("id", "<u8"), ("first", "<i8"), ("windows", "<i4")])


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
        self.tokens = map_file(folder / "tokens.bin", token_type(self.vocab_size))
        self.learn = map_file(folder / "learn.bin", np.dtype(np.uint8))
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

    def facts(self) -> dict[str, Any]:
        """What a run keeps of its data, for report and card: sources, counts of both parts, what was left out."""
        keys = (
            "format",
            "vocab_size",
            "sources",
            "counts",
            "dropped",
            "changed",
            "quarantined",
            "fingerprint",
        )
        facts = {key: self.manifest[key] for key in keys}
        held_out = self.validation.manifest["counts"] if self.validation else None
        return {"folder": str(self.folder), **facts, "held_out_counts": held_out}

    def source_rows(self) -> npt.NDArray[Any]:
        """[R] the source's rows in their order, with the fields of STORED_ROW; continuous text has none."""
        rows: npt.NDArray[Any] = np.load(self.folder / "rows.npy", mmap_mode="r")
        return rows

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        here = self.folder / "tokenizer"
        return Tokenizer.load(here if here.is_dir() else self.folder.parent / "tokenizer")


def token_type(vocab_size: int) -> np.dtype[Any]:
    """uint16, or uint32 for more than 65,535 ids; little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= LARGEST_UINT16_VOCABULARY else "<u4")


def map_file(path: Path, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """The numbers in a file, mapped into memory."""
    if path.stat().st_size == 0:
        return np.zeros(0, kind)  # an empty file cannot be mapped
    return np.memmap(path, dtype=kind, mode="r")


class StoreWriter:
    """Append examples to one part of a store, in bounded memory; use it in a `with` block, then `finish`.

    Attributes:
        type: of the ids.
        counts: rows, examples, tokens, learned_tokens, bytes (of the text, in UTF-8); of the rows' contents
            source_tokens, and present_tokens that are in an example; rows windowed (more than one example) and
            shortened (what is only read).
    """

    def __init__(self, folder: Path, *, tokenizer: Tokenizer) -> None:
        files.make_folder(folder)
        self.folder = folder
        self._tokenizer = tokenizer
        self.type = token_type(tokenizer.vocab_size)
        self._tokens = files.Writer(folder / "tokens.bin")
        self._learn = files.Writer(folder / "learn.bin")
        # The headers of examples.npy and rows.npy hold their numbers, which are known at the end.
        self._starts = files.Writer(folder / "examples.raw")
        self._rows = files.Writer(folder / "rows.raw")
        self.counts = dict.fromkeys(COUNTS, 0)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *reason: Any) -> None:
        for writer in (self._tokens, self._learn, self._starts, self._rows):
            writer.__exit__(*reason)

    def begin_document(self) -> None:
        """The next token is the first of an example that is a row of its own."""
        self._starts.write(self.counts["tokens"].to_bytes(8, "little"))
        self.counts["examples"] += 1
        self.counts["rows"] += 1

    def add(self, ids: Sequence[int] | npt.NDArray[Any], learn: int) -> None:
        """Append tokens to the document that was begun; `learn` is the flag of all."""
        self._append(np.asarray(ids, self.type), np.full(len(ids), learn, np.uint8))

    def add_rows(
        self,
        rows: npt.NDArray[Any],
        *,
        tokens: npt.NDArray[Any],
        learn: npt.NDArray[np.uint8],
        lengths: npt.NDArray[np.int64],
    ) -> None:
        """Append the windows of rows, each an example.

        Args:
            rows: [R] with the fields id, windows, tokens, bytes, source_tokens, present_tokens, shortened.
            tokens, learn: [N] of all windows. lengths: [W] tokens of each window.
        """
        ends = np.cumsum(lengths) + self.counts["tokens"]
        self._starts.write((ends - lengths).astype("<i8").tobytes())
        kept = np.empty(len(rows), STORED_ROW)
        kept["id"], kept["windows"] = rows["id"], rows["windows"]
        kept["first"] = np.cumsum(rows["windows"]) - rows["windows"] + self.counts["examples"]
        self._rows.write(kept.tobytes())
        self.counts["rows"] += len(rows)
        self.counts["examples"] += len(lengths)
        self.counts["windowed"] += int((rows["windows"] > 1).sum())
        for name in ("bytes", "source_tokens", "present_tokens", "shortened"):
            self.counts[name] += int(rows[name].sum())
        self._append(tokens, learn)

    def _append(self, tokens: npt.NDArray[Any], learn: npt.NDArray[np.uint8]) -> None:
        self._tokens.write(tokens.tobytes())
        self._learn.write(learn.tobytes())
        self.counts["tokens"] += len(tokens)
        self.counts["learned_tokens"] += int(learn.sum())

    def finish(
        self, *, extra: Mapping[str, Any], quarantine: Iterable[bytes] = (), dropped: Iterable[bytes] = ()
    ) -> str:
        """Write the other files and the manifest (with `extra`) after the block; returns the fingerprint.

        Args:
            quarantine, dropped: lines of the files of these names.
        """
        total = self.counts["tokens"].to_bytes(8, "little")
        hashes = {
            "tokens.bin": self._tokens.sha256,
            "learn.bin": self._learn.sha256,
            "examples.npy": self._write_npy("examples", "<i8", self.counts["examples"] + 1, after=total),
        }
        identity = [hashes[name] for name in sorted(hashes)]
        rows = self._rows.bytes // STORED_ROW.itemsize  # documents have none
        hashes["rows.npy"] = self._write_npy("rows", STORED_ROW.descr, rows)
        hashes["quarantine.jsonl"] = files.write_file(self.folder / "quarantine.jsonl", quarantine)
        hashes["dropped.jsonl"] = files.write_file(self.folder / "dropped.jsonl", dropped)
        identity += [self._tokenizer.fingerprint, str(extra.get("validation_fingerprint", ""))]
        fingerprint = hashlib.sha256("\n".join(identity).encode()).hexdigest()
        body = {
            "kind": KIND,
            "fingerprint": fingerprint,
            "counts": self.counts,
            "vocab_size": self._tokenizer.vocab_size,
            "end_of_text": self._tokenizer.end_of_text,
            "tokenizer": self._tokenizer.fingerprint,
            "dtype": self.type.name,
        }
        files.write_manifest(self.folder, extra={**body, **extra}, hashes=hashes)
        return fingerprint

    def _write_npy(self, name: str, kind: Any, length: int, *, after: bytes = b"") -> str:
        """Make NAME.npy: its header, the bytes of NAME.raw, and `after`; its sha256."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": kind, "fortran_order": False, "shape": (length,)}
        )
        raw = self.folder / f"{name}.raw"
        sha256 = files.write_file(
            self.folder / f"{name}.npy", chain([header.getvalue()], _blocks(raw), [after])
        )
        with files.disk_errors(raw):
            files.operations.unlink(raw)
        return sha256


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def same_json(left: Any, right: Any) -> bool:
    """Whether two values are the same once written as JSON."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
