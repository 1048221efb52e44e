"""Data files of a data set on the hub: known by their content, read from the cache or streamed.

What   `HubFile` is one data file of a split, `HubSpan` a part of it that is read by itself: `span.read(observe=...)`
       gives Record and BadRecord, as RecordReader does for files of one's own.
Why    A worker process, or another machine, must be able to read a part from its description alone; prepared data
       must know its source again without a network; nobody wants 200 MB in the cache for 1,000 rows.
How    A file is downloaded into Hugging Face's cache and read from there: Parquet, JSON lines, CSV and text by
       RecordReader, the rest by `datasets`. Streamed are, by `datasets`, files of a large split, and where
       data.max_rows is set all but small ones. Only readers of plain data are used: no code, no pickle.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnet.data.reading.records import RecordReader, Span, spans_of
from linnet.data.rows import BadRecord, Record
from linnet.errors import DiskError, LinnetError
from linnet.files import disk_errors
from linnet.hub import no_telemetry, retried, why_not

LARGE = 1 << 30  # bytes of a split; a larger one is streamed
FEW_ROWS = 16 << 20  # bytes of a file; with data.max_rows a larger one is streamed
READERS = (
    "parquet",
    "json",
    "csv",
    "text",
)  # of `datasets`; its others are for pictures, archives and the like
# What RecordReader reads itself, line by line. A .json on the hub is an array as often as JSON lines: `datasets` knows.
_OWN = (".parquet", ".jsonl", ".csv", ".tsv", ".txt")
_PACKED = (".gz", ".zst")
_JSON_LINES = (".jsonl", ".ndjson")

Observe = Callable[[int], None]


@dataclass(frozen=True)
class HubFile:
    """One data file of a data set.

    Attributes:
        repository, revision: where it is; the revision is a commit.
        path: in the repository.
        size: bytes.
        content: a hash of the content, by the hub; it stays the same in commits that do not change the file.
        reader: the name that `datasets` has for its kind: one of READERS.
        options: what the data set's card tells that reader (a separator, a field), as (name, value).
        streamed: it is read over the network, not downloaded first.
    """

    repository: str
    revision: str
    path: str
    size: int
    content: str
    reader: str
    options: tuple[tuple[str, Any], ...] = ()
    streamed: bool = False

    @property
    def name(self) -> str:
        """For messages and quarantine.jsonl."""
        return f"hf:{self.repository}/{self.path}"

    @property
    def url(self) -> str:
        return f"hf://datasets/{self.repository}@{self.revision}/{self.path}"

    @property
    def suffix(self) -> str:
        """Of the content, behind which .gz or .zst is left out."""
        path = Path(self.path)
        return (Path(path.stem) if path.suffix.lower() in _PACKED else path).suffix.lower()

    @property
    def is_plain(self) -> bool:
        """RecordReader reads it like a file of one's own."""
        usual = {"sep": "\t"} if self.suffix == ".tsv" else {}
        return self.suffix in _OWN and dict(self.options) == usual

    @property
    def is_plain_text(self) -> bool:
        """A text file, without settings of the card."""
        return self.is_plain and self.suffix == ".txt"

    def identity(self) -> dict[str, Any]:
        """What prepared data holds, to know the file again without a network."""
        return {"path": self.name, "bytes": self.size, "content": self.content}

    def download(self) -> Path:
        """The file in Hugging Face's cache, downloaded if it is not there.

        Raises:
            LinnetError: the hub does not give it. DiskError: it does not fit the disk.
        """
        no_telemetry()
        from huggingface_hub import constants, hf_hub_download

        try:
            with disk_errors(Path(constants.HF_HUB_CACHE, "datasets"), needed=self.size):
                path = retried(
                    lambda: hf_hub_download(
                        *(self.repository, self.path),
                        repo_type="dataset",
                        revision=self.revision,
                        library_name="linnet",
                    )
                )
                return Path(path)
        except DiskError:
            raise
        except Exception as error:  # Of the hub's client, of http and of sockets.
            raise LinnetError(f"{self.name} is not in the local cache, and {why_not(error)}.") from error

    def spans(self, *, size: int) -> list[HubSpan]:
        """Parts of about `size` bytes, in order, which re-joined are the file.

        A file that `datasets` reads is one part. Others are downloaded, to be cut at line ends or row groups.
        """
        if self.streamed or not self.is_plain:
            return [HubSpan(self, 0, self.size)]
        return [HubSpan(self, span.start, span.stop) for span in spans_of(self.download(), size=size)]


@dataclass(frozen=True)
class HubSpan:
    """A part of a file; `start` and `stop` as in `Span`. A description: it can go to another process or machine."""

    file: HubFile
    start: int
    stop: int

    def read(self, *, observe: Observe) -> RecordReader | StreamReader:
        """Its rows: iterate over Record and BadRecord; `lines` and `empty` afterwards."""
        if self.file.streamed:
            return StreamReader(self.file, self.file.url, observe=observe)
        path = self.file.download()
        if not self.file.is_plain:
            return StreamReader(self.file, str(path), observe=observe)
        return RecordReader(Span(path, self.start, self.stop), observe=observe)


class StreamReader:
    """Rows of a whole file, by `datasets` with streaming=True; a broken connection is taken up again by it.

    A record's `line` is the number of the row (of JSON lines and text the line), its `byte` 0: it is not known.
    The progress is a guess from the length of the values.

    Attributes:
        lines: rows or lines so far.
        empty: empty lines so far, which are left out.
    """

    def __init__(self, file: HubFile, place: str, *, observe: Observe) -> None:
        self.file, self.place, self._observe = file, place, observe
        self.lines = self.empty = 0

    def __iter__(self) -> Iterator[Record | BadRecord]:
        """Raises LinnetError where the file cannot be read (further)."""
        self.lines = self.empty = seen = 0
        # Lines of JSON come as text: one that is damaged then costs one row and not the file.
        by_line = self.file.suffix in _JSON_LINES and not self.file.options
        try:
            for values in self._rows("text" if by_line else self.file.reader):
                self.lines += 1
                told = min(len(str(values)), self.file.size - seen)
                seen += told
                self._observe(told)
                if set(values) == {"text"} and not values["text"].strip():
                    self.empty += 1
                elif by_line:
                    yield _parse_line(values["text"], self.lines)
                else:
                    yield Record(values, self.lines, 0)
        except LinnetError:
            raise
        except Exception as error:  # Of datasets, pyarrow, pandas, the hub's client and sockets.
            reason = first_sentence(error) if isinstance(error, ValueError) else why_not(error)
            raise LinnetError(f"{self.file.name}, after row {self.lines:,}: {reason}.") from error
        self._observe(self.file.size - seen)

    def _rows(self, reader: str) -> Iterator[dict[str, Any]]:
        datasets = quiet_datasets()
        options = {"encoding_errors": "replace"} if reader == "text" else {}
        yield from datasets.load_dataset(
            reader,
            data_files=[self.place],
            split="train",
            streaming=True,
            **options | dict(self.file.options),
        )


def _parse_line(text: str, line: int) -> Record | BadRecord:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRecord(f"not JSON: {error}", line, 0)
    if not isinstance(values, Mapping):
        return BadRecord("not a JSON object", line, 0)
    return Record(values, line, 0)


def first_sentence(error: Exception) -> str:
    """Of a message by another package, to stand in one of ours."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")


def quiet_datasets() -> Any:
    """The package `datasets`, which reports nothing, asks no other host and draws no bars."""
    no_telemetry()
    try:
        datasets: Any = importlib.import_module("datasets")  # it brings no types
    except ImportError as error:
        raise LinnetError(
            'Data sets on the hub need the package datasets: pip install "datasets>=4".'
        ) from error
    # For a program that imported it before us.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.config.USE_PARQUET_EXPORT = False  # the branch on the hub is asked instead, see hub_sets.py
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs is in our errors
    return datasets
