"""The inputs of a build: which files (or shards on the hub) there are, which are held out, and how they are cut.

What   `find_inputs` lists them; `spans` cuts one into pieces that are read apart, and says which are held out.
Why    A large file must be readable by several processes, and the held-out share of a document is one contiguous end.
How    Line files are cut at line ends, documents where a cut changes no ids (see tokenizer.CUT_GPT2), Parquet at its
       row groups. What cannot be cut (compressed files, CSV, JSON arrays) is one span.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet import files
from linnet.data.formats import RowFormat, make_row_format
from linnet.data.reading.compressed import content_size, is_compressed
from linnet.data.reading.hub_files import HubFile, HubSpan, StreamReader
from linnet.data.reading.hub_sets import find_hub_set
from linnet.data.reading.records import RecordReader, Span, file_kind, spans_of
from linnet.data.reading.sources import find_files
from linnet.data.reading.text import character_boundary
from linnet.data.rows import BadRecord
from linnet.errors import LinnetError

if TYPE_CHECKING:
    from linnet.config import DataConfig

SPAN = 8 << 20  # bytes that a worker reads at once
LOOKED_AT = 1000  # first rows of a file, by which its columns are found; 5 ms
PLACES = 32  # spans of a large file whose first rows are asked for further columns
SEARCHED = 1 << 16  # bytes in which a place to cut a document is looked for
# Before a space that follows a letter a cut is exact for every pre-tokenizer that we know.
_CUT = re.compile(rb"(?<=[A-Za-z])(?= )")

Say = Callable[[str], None]


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine: what HubFile is for one on the hub. `mtime_ns` is when it was changed."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> LocalFile:
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    @property
    def name(self) -> str:
        """For messages and quarantine.jsonl."""
        return str(self.path)

    def spans(self, *, size: int) -> list[Span]:
        """Parts of about `size` bytes, in order, which re-joined are the file."""
        return spans_of(self.path, size=size)

    def identity(self) -> dict[str, Any]:
        """What prepared data holds, to know the file again."""
        stat = self.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns):
            raise LinnetError(f"{self.path} changed while it was read; start again when it is complete.")
        return {
            "path": self.name,
            "bytes": self.size,
            "mtime_ns": self.mtime_ns,
            "sha256": files.sha256_file(self.path),
        }

    def is_same(self, known: Mapping[str, Any]) -> bool:
        """Same path, size and modification time as an `identity`, or else the same content."""
        if "sha256" not in known or known["bytes"] != self.size:
            return False
        untouched = (known["path"], known["mtime_ns"]) == (self.name, self.mtime_ns)
        return untouched or files.sha256_file(self.path) == known["sha256"]


@dataclass(frozen=True)
class Input:
    """A file, and whether all of it is held out."""

    file: LocalFile | HubFile
    held_out: bool

    @property
    def kind(self) -> str:
        """Inputs of one kind have the same columns: the files of a data set on the hub, else each file by itself."""
        return self.file.repository if isinstance(self.file, HubFile) else self.file.name

    def is_document(self, format: str) -> bool:
        """Whether it is one running text, and not rows: a text file, unless it is streamed from the hub."""
        if isinstance(self.file, HubFile):
            return format == "text" and self.file.is_plain_text and not self.file.streamed
        return format == "text" and file_kind(self.file.path) == "txt"

    def local_path(self) -> Path:
        """Where it lies on this machine; a file of the hub is downloaded."""
        return self.file.download() if isinstance(self.file, HubFile) else self.file.path

    def first_records(self) -> list[Mapping[str, Any]]:
        """The columns of its first rows that can be read.

        Raises:
            LinnetError: there are rows, and not one can be read.
        """
        records: list[Mapping[str, Any]] = []
        bad: BadRecord | None = None
        for record in open_span(self.file.spans(size=SPAN)[0], observe=lambda count: None):
            if isinstance(record, BadRecord):
                bad = bad or record
                continue
            records.append(record.values)
            if len(records) == LOOKED_AT:
                break
        if bad and not records:
            raise LinnetError(
                f"{self.file.name}:{bad.line}: {bad.reason}, and no other of its rows can be read either; mend the "
                "file, or leave it out."
            )
        return records

    def row_format(self, data: DataConfig) -> RowFormat:
        """How its rows are read. LinnetError: its columns cannot be mapped, or it has no rows."""
        first = self.first_records()
        return make_row_format(data, first, where=self.file.name, later=self.later_columns())

    def later_columns(self) -> list[str]:
        """Columns of JSON, also those that its first rows lack: of the first 8 MB, and of first rows of further places.

        Other types say all their columns at the start.
        """
        if not isinstance(self.file, LocalFile) or file_kind(self.file.path) not in ("json", "jsonl"):
            return []
        spans = self.file.spans(size=SPAN)
        names: dict[str, None] = {}
        for number, span in enumerate(spans[:: -(-len(spans) // PLACES)]):
            rows = 0
            for record in open_span(span, observe=lambda count: None):
                if isinstance(record, BadRecord):
                    continue
                names.update(dict.fromkeys(record.values))
                rows += 1
                if rows >= LOOKED_AT and (number or record.byte >= SPAN):
                    break
        return list(names)

    def identity(self) -> dict[str, Any]:
        """What the store's manifest holds of it."""
        return {**self.file.identity(), "held_out": self.held_out}

    def is_same(self, known: Mapping[str, Any]) -> bool:
        """Whether it is what the manifest's entry `known` tells of."""
        if known["held_out"] != self.held_out:
            return False
        if isinstance(self.file, LocalFile):
            return self.file.is_same(known)
        return self.identity() == known


def open_span(span: Span | HubSpan, *, observe: Callable[[int], None]) -> RecordReader | StreamReader:
    """A reader of its rows."""
    return RecordReader(span, observe=observe) if isinstance(span, Span) else span.read(observe=observe)


@dataclass(frozen=True)
class Piece:
    """A span of an input and its size, for the progress; `begins` and `ends`: of a document, where its text does."""

    span: Span | HubSpan
    bytes: int
    held_out: bool
    begins: bool = False
    ends: bool = False


def find_inputs(data: DataConfig, *, say: Say) -> list[Input]:
    """The files of data.source and data.validation, those to train on first; one that both name is only held out.

    A data set on the hub that has a held-out split of its own brings it along, unless nothing is to be held out or
    data.validation names another.
    """
    sources = [data.source] if isinstance(data.source, str) else data.source
    if not any(sources):
        raise LinnetError("data.source is not set; give a file, a folder or a glob: data.source=notes.txt")
    held_out: list[LocalFile | HubFile] = []
    if isinstance(data.validation, str):
        _refuse_share(data.validation)
        found, own_split = _find(data.validation, data, key="data.validation", say=say)
        held_out = list(own_split) or found
    named: list[LocalFile | HubFile] = []
    own: list[HubFile] = []
    for source in sources:
        found, split = _find(source, data, key="data.source", say=say)
        named += [file for file in found if file not in named]
        own += split
    if isinstance(data.validation, float) and data.validation:
        held_out += own
    places = {_place(file) for file in held_out}
    train = [file for file in named if _place(file) not in places]
    if not train:
        raise LinnetError(
            f"data.validation={data.validation} holds out every file of data.source={data.source}, so nothing is left "
            "to train on; name other files, or a share: data.validation=0.1."
        )
    if both := len(named) - len(train):
        say(
            f"{both} {'file' if both == 1 else 'files'} of data.source, named by data.validation as well, "
            f"{'is' if both == 1 else 'are'} held out and not trained on."
        )
    return [Input(file, False) for file in train] + [Input(file, True) for file in held_out]


def _find(
    source: str, data: DataConfig, *, key: str, say: Say
) -> tuple[list[LocalFile | HubFile], list[HubFile]]:
    """The files of one source, and those of its own held-out split."""
    if source.startswith("hf:"):
        found = find_hub_set(source, say=say, max_rows=data.max_rows)
        return list(found.files), list(found.held_out_files)
    paths = find_files(source, key=key, say=say)
    if data.format not in ("text", "lines"):
        # A README.md beside the data is no data.
        rows = [path for path in paths if file_kind(path) != "txt"]
        if rows and len(rows) < len(paths):
            say(
                f"{source}: {len(paths) - len(rows)} text files are left out, since {data.format} reads rows."
            )
            paths = rows
    return [LocalFile.at(path) for path in paths], []


def _place(file: LocalFile | HubFile) -> str:
    return str(file.path.resolve()) if isinstance(file, LocalFile) else file.url


def _refuse_share(validation: str) -> None:
    """Raise where a text, like "10%" or "0,1", means a share and not a file."""
    found = re.fullmatch(r"\s*(\d*[.,]?\d+)\s*(%?)\s*", validation)
    if not found or Path(validation).exists():
        return
    share = float(found[1].replace(",", ".")) / (100 if found[2] else 1)
    meant = f"data.validation={share:g}" if share < 1 else "a number below 1, as in data.validation=0.1"
    raise LinnetError(f"data.validation={validation} is no file; a share is written as a number: {meant}.")


def pieces_of(source: Input, *, format: str, share: float) -> list[Piece]:
    """The spans of an input, in order. Of a document the last `share` is held out; of rows the merge decides."""
    file = source.file
    if not source.is_document(format):
        spans = file.spans(size=SPAN)
        return [Piece(span, file.size // len(spans), source.held_out) for span in spans]
    path = source.local_path()
    size = content_size(path)
    cut = size
    if source.held_out:
        cut = 0
    elif share:
        cut = character_boundary(path, int(size * (1 - share)))
    pieces = []
    for held_out, start, stop in ((False, 0, cut), (True, cut, size)):
        edges = _edges(path, start, stop)
        pieces += [Piece(Span(path, a, b), b - a, held_out) for a, b in itertools.pairwise(edges)]
    return [
        replace(piece, begins=number == 0, ends=number == len(pieces) - 1)
        for number, piece in enumerate(pieces)
    ]


def _edges(path: Path, start: int, stop: int) -> list[int]:
    """Where to cut a part of a document, its two ends included."""
    if start == stop:
        return []
    edges = [start]
    if not is_compressed(path):
        with path.open("rb") as file:
            for wanted in range(start + SPAN, stop - SPAN // 2, SPAN):
                file.seek(wanted)
                found = _CUT.search(file.read(SEARCHED))
                if found and wanted + found.start() < stop:
                    edges.append(wanted + found.start())
    return [*edges, stop]
