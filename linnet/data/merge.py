"""The merge of preparing: from parts, in order, to the token store.

What   `Merge(parts).write(...)` copies what is trained on and what is held out, and tells of what is left out.
Why    What is held out and what is a duplicate depends on all rows; nothing else does.
How    fates.py decides; then whole parts are copied, without what is left out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet import files
from linnet.data.duplicates import Sketches
from linnet.data.fates import Fates, Mask
from linnet.data.map import EMPTY, EXCERPT, ROW
from linnet.data.store import StoreWriter, map_file, token_type
from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer

FEWEST_ROWS = 20  # with fewer rows nothing is held out
ROWS_AT_ONCE = 8192
TOKENS_AT_ONCE = 1 << 22
SHOWN_BAD = 3  # bad rows that the message about too many of them names


@dataclass(frozen=True)
class Part:
    """A part of a source, in the order of the source.

    Attributes:
        name: the file, or the shard on the hub, for messages. counts: what the map counted.
        held_out: all of its source is held out.
        document: it is a part of one running text, and not rows; `begins`, `ends`: its first, or last.
    """

    folder: Path
    name: str
    counts: Mapping[str, Any]
    held_out: bool
    document: bool
    begins: bool = False
    ends: bool = False

    def rows(self) -> npt.NDArray[Any]:
        """[R] of ROW."""
        return self.array("rows.bin", ROW)

    def array(self, name: str, kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """The numbers of tokens.bin, learn.bin, lengths.bin or rows.bin, mapped and not read."""
        path = self.folder / name
        return map_file(path, np.dtype(kind)) if path.exists() else np.zeros(0, kind)

    def notes(self, name: str) -> Iterator[dict[str, Any]]:
        """The entries of dropped.jsonl or quarantine.jsonl."""
        path = self.folder / name
        if path.exists():
            with path.open("rb") as file:
                yield from map(json.loads, file)


class Merge:
    """One merge: parts in, a store out."""

    def __init__(self, parts: Sequence[Part], *, tokenizer: Tokenizer) -> None:
        self.parts, self.tokenizer = parts, tokenizer
        self.documents = any(part.document for part in parts)
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.bad = 0
        for part in parts:
            self.dropped.update(part.counts["dropped"])
            self.changed.update(part.counts["changed"])
            self.bad += part.counts["bad"]
        ids = [part.rows()["id"].copy() for part in parts]  # what is not needed now stays on the disk
        self.ids: npt.NDArray[np.uint64] = np.concatenate(ids) if ids else np.zeros(0, np.uint64)
        self.ends = np.cumsum([len(some) for some in ids])
        own = [np.full(len(some), part.held_out) for part, some in zip(parts, ids, strict=True)]
        self.own_held_out: Mask = np.concatenate(own) if own else np.zeros(0, bool)

    def refuse_bad(self, most: float) -> None:
        """Raise where more than the share `most` of the rows cannot be used."""
        filtered = sum(count for why, count in self.dropped.items() if why != EMPTY)
        seen = len(self.ids) + filtered + self.bad
        if not self.bad or self.bad <= most * seen:
            return
        entries = list(self.quarantined())
        reasons = Counter(str(entry["reason"]) for entry in entries).most_common(SHOWN_BAD)
        first = entries[0]
        raise LinnetError(
            f"{self.bad:,} of {seen:,} rows cannot be used, more than data.max_bad={most:g}: "
            + "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
            + f"; the first is {first['file']}:{first['line']}: byte {first['byte']}. Mend them, or set "
            f"data.max_bad={share_above(self.bad / seen):g} to go on without them."
        )

    def quarantined(self) -> Iterator[dict[str, Any]]:
        """The rows that cannot be used: file, line, byte, reason, text."""
        for part, line in zip(self.parts, self._first_lines(), strict=True):
            for note in part.notes("quarantine.jsonl"):
                yield {"file": part.name, **note, "line": line + note["line"]}

    def _first_lines(self) -> list[int]:
        """Lines of the same source that come before each part."""
        before: Counter[str] = Counter()
        lines = []
        for part in self.parts:
            lines.append(before[part.name])
            before[part.name] += part.counts["lines"]
        return lines

    def sketches(self) -> list[Sketches]:
        """Of each part [its rows, K], mapped and not read; empty where the map made none."""
        paths = [part.folder / "sketches.npy" for part in self.parts]
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths if path.is_file()]

    def write(self, fates: Fates, train: StoreWriter, held_out: StoreWriter) -> None:
        """Copy what is not left out, part by part."""
        open_side: StoreWriter | None = None
        for part, end in zip(self.parts, self.ends.tolist(), strict=True):
            if part.document:
                open_side = self._write_document(
                    part, held_out if part.held_out else train, open_side=None if part.begins else open_side
                )
            else:
                self._write_rows(part, end, fates, train, held_out)
        for rule, mask in fates.why.items():
            self.dropped[rule] += int(mask.sum())

    def _write_rows(
        self, part: Part, end: int, fates: Fates, train: StoreWriter, held_out: StoreWriter
    ) -> None:
        """The windows of the rows that end before `end`."""
        table = part.rows()
        before = end - len(table)
        tokens, learn = part.array("tokens.bin", train.type), part.array("learn.bin", np.uint8)
        lengths = part.array("lengths.bin", "<i8")
        tokens_before = np.cumsum(table["tokens"]) - table["tokens"]
        token = window = start = 0
        while start < len(table):
            enough = int(np.searchsorted(tokens_before, token + TOKENS_AT_ONCE))
            rows = table[start : min(start + ROWS_AT_ONCE, max(start + 1, enough))]
            here = slice(before + start, before + start + len(rows))
            next_token, next_window = token + int(rows["tokens"].sum()), window + int(rows["windows"].sum())
            for writer, mask in (
                (train, ~fates.held_out[here] & ~fates.left_out[here]),
                (held_out, fates.held_out[here]),
            ):
                of_token = np.repeat(mask, rows["tokens"])
                writer.add_rows(
                    rows[mask],
                    tokens=tokens[token:next_token][of_token],
                    learn=learn[token:next_token][of_token],
                    lengths=lengths[window:next_window][np.repeat(mask, rows["windows"])],
                )
            token, window, start = next_token, next_window, start + len(rows)

    def _write_document(
        self, part: Part, writer: StoreWriter, *, open_side: StoreWriter | None
    ) -> StoreWriter | None:
        """A part of end-of-text + ids + end-of-text, which is cut in two where the held-out share begins.

        `open_side` has the part before it; the side that is open now is returned.
        """
        end = np.array([self.tokenizer.end_of_text], writer.type)
        tokens = part.array("tokens.bin", writer.type)
        writer.counts["bytes"] += part.counts["bytes"]
        if len(tokens) and open_side is not writer:
            open_side = writer
            writer.begin_document()
            # The first token of the held-out share is no target, since nothing comes before it.
            writer.add(end if part.begins else tokens[:1], 0)
            tokens = tokens if part.begins else tokens[1:]
        for start in range(0, len(tokens), TOKENS_AT_ONCE):
            writer.add(tokens[start : start + TOKENS_AT_ONCE], 1)
        if part.ends and open_side is writer:
            writer.add(end, 1)
        return open_side

    def quarantine_lines(self) -> Iterator[bytes]:
        """quarantine.jsonl."""
        return map(_line, self.quarantined())

    def dropped_lines(self, fates: Fates) -> Iterator[bytes]:
        """dropped.jsonl: what filters dropped while rows were read, then what was left out here."""
        for number, (part, line) in enumerate(zip(self.parts, self._first_lines(), strict=True)):
            for note in part.notes("dropped.jsonl"):
                place = f"{part.name}:{line + note['line']}:{note['byte']}"
                yield _line({key: note[key] for key in ("id", "rule", "text")} | {"place": place})
            end = int(self.ends[number])
            yield from self._dropped_here(fates, part, slice(end - len(part.rows()), end), line)

    def _dropped_here(self, fates: Fates, part: Part, here: slice, line: int) -> Iterator[bytes]:
        if not any(mask[here].any() for mask in fates.why.values()):
            return
        table = part.rows()
        tokens = part.array("tokens.bin", token_type(self.tokenizer.vocab_size))
        starts = np.cumsum(table["tokens"]) - table["tokens"]
        for rule, mask in fates.why.items():
            for index in np.flatnonzero(mask[here]).tolist():
                row, start = table[index], int(starts[index])
                shown = tokens[start : start + min(EXCERPT, int(row["tokens"]))].tolist()
                yield _line(
                    {
                        "id": f"{int(row['id']):016x}",
                        "rule": rule,
                        "text": self.tokenizer.decode(shown)[:EXCERPT],
                        "place": f"{part.name}:{line + int(row['line'])}:{int(row['byte'])}",
                    }
                )


def share_above(share: float) -> float:
    """The next hundredth, which is enough as data.max_bad.

    >>> share_above(0.0123)
    0.02
    """
    return min(1.0, math.ceil(100 * share) / 100)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def read_ids(path: str, *, key: str) -> npt.NDArray[np.uint64]:
    """The row ids in a file of data.drop or data.keep: 16 hex digits a line; `#` begins a comment.

    Raises:
        LinnetError: the file is missing, or a line is no id.
    """
    if not path:
        return np.zeros(0, np.uint64)
    try:
        lines = files.expand_home(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LinnetError(
            f"{key}={path} cannot be read ({error}); give a file of row ids, one a line."
        ) from error
    ids = []
    for number, line in enumerate(lines, start=1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            ids.append(int(word, 16))
            if len(word) != 16:
                raise ValueError
        except ValueError:
            raise LinnetError(
                f"{path}:{number}: {word[:40]!r} is no row id (16 hex digits, as `linnet inspect` prints); mend {key}."
            ) from None
    return np.array(ids, np.uint64)
