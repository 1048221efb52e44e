"""Building a token store: read the sources in blocks, split, tokenize, write.

What   `Build(...).run()` fills an empty folder.
Why    Memory must stay flat on files of any size, and the same files and settings must give the same bytes.
How    One pass over the files, two where a tokenizer is trained. What is held out: of a document its last share,
       contiguous; of rows those whose hash falls into the share. A held-out source of its own is never trained on:
       training rows that are equal to one of its rows are dropped.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet import files
from linnet.data.formats import ROW_FORMATS, Example, example_ids
from linnet.data.sources import character_boundary, read_lines, read_text
from linnet.data.store import StoreWriter
from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer, cut_stream, train_bpe, train_char

if TYPE_CHECKING:
    from linnet.config import DataConfig, TokenizerConfig

TOKENIZER_SAMPLE = 32 << 20  # bytes of text that a BPE is trained on
FEWEST_ROWS = 20  # with fewer rows nothing is held out
ROWS_AT_ONCE = 2048
CHARACTERS_AT_ONCE = 1 << 19
EMPTY, HELD_OUT = "empty line", "equal to a held-out row"  # why a row is dropped

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), over all passes."""


@dataclass(frozen=True)
class Source:
    """One input file, and whether all of it is held out."""

    path: Path
    bytes: int
    mtime_ns: int
    held_out: bool


class Build:
    """One building of a store: the state that its passes share."""

    def __init__(
        self,
        folder: Path,
        *,
        data: DataConfig,
        sources: list[Source],
        config: dict[str, Any],
        notes: list[str],
        progress: Progress,
    ) -> None:
        self.folder, self.data, self.sources, self.config, self.notes = folder, data, sources, config, notes
        self.progress = progress
        self.done = 0
        self.size = sum(source.bytes for source in sources)
        self.total = self.size
        self.hashes: list[str] = []
        self.dropped: Counter[str] = Counter()
        self.share = data.validation if isinstance(data.validation, float) else 0.0

    def run(self, given: Tokenizer | None, config: TokenizerConfig) -> None:
        if not given:
            self.total += self.size
            given = self._train_tokenizer(config)
        files.make_folder(self.folder / "tokenizer")
        # 1024 stands for "not known yet": the model folder gets the model's own figure.
        given.save(self.folder / "tokenizer", n_positions=1024)
        self._write(given)

    def _observe(self, block: bytes) -> None:
        self.done += len(block)
        self.progress(self.done, self.total)

    # -- what is held out ------------------------------------------------------------------------------------------

    def _spans(self, source: Source) -> list[tuple[bool, int, int]]:
        """(held out, first byte, last byte + 1) of a document: its last share is held out, contiguous."""
        cut = source.bytes
        if source.held_out:
            cut = 0
        elif self.share:
            cut = character_boundary(source.path, int(source.bytes * (1 - self.share)))
        spans = [(False, 0, cut), (True, cut, source.bytes)]
        return [(held_out, start, stop) for held_out, start, stop in spans if stop > start]

    # -- reading ---------------------------------------------------------------------------------------------------

    def _lines(self, observe: Callable[[Source], Callable[[bytes], None]]) -> Iterator[tuple[Source, str]]:
        """(source, line) of every line that is not empty."""
        self.dropped.clear()
        for source in self.sources:
            for _, line in read_lines(source.path, stop=source.bytes, observe=observe(source)):
                if line.strip():
                    yield source, line
                else:
                    self.dropped[EMPTY] += 1

    @cached_property
    def _held_out_rows(self) -> set[int]:
        """Hashes of the rows of a held-out source, which are in no training row; 8 bytes stand for each."""
        rows: set[int] = set()
        if self.data.format in ROW_FORMATS:
            for source in self.sources:
                if source.held_out:
                    rows.update(_row_hash(line) for _, line in read_lines(source.path, stop=source.bytes))
        return rows

    def _rows(self, observe: Callable[[Source], Callable[[bytes], None]]) -> Iterator[tuple[bool, str]]:
        """(held out, line): by a hash of the line, so adding rows moves none, and equal rows stay together."""
        lines = self._lines(observe)
        first = list(itertools.islice(lines, FEWEST_ROWS))
        share = self.share if len(first) == FEWEST_ROWS else 0.0
        known = self._held_out_rows
        for source, line in itertools.chain(first, lines):
            number = _row_hash(line) if share or known else 0
            if number in known and not source.held_out:
                self.dropped[HELD_OUT] += 1
                continue
            yield source.held_out or number < share * 2**64, line

    def _training_texts(self, *, everything: bool) -> Iterator[str]:
        """What a tokenizer is trained on: all text, or the training part, evenly thinned out if it is long."""
        keep = 1.0 if everything else min(1.0, TOKENIZER_SAMPLE / self.size)
        pieces = (
            self._training_rows(everything)
            if self.data.format in ROW_FORMATS
            else self._training_spans(everything)
        )
        for number, piece in enumerate(pieces):
            if int((number + 1) * keep) > int(number * keep):
                yield piece

    def _training_rows(self, everything: bool) -> Iterator[str]:
        for held_out, line in self._rows(lambda _: self._observe):
            if everything or not held_out:
                yield line

    def _training_spans(self, everything: bool) -> Iterator[str]:
        for source in self.sources:
            for held_out, start, stop in self._spans(source):
                texts = read_text(source.path, start=start, stop=stop, observe=self._observe)
                for pieces in cut_stream(texts):
                    if everything or not held_out:
                        yield from pieces

    def _train_tokenizer(self, config: TokenizerConfig) -> Tokenizer:
        if config.name == "char":
            return train_char(self._training_texts(everything=True))
        trained = train_bpe(self._training_texts(everything=False), vocab_size=config.vocab_size)
        if trained.vocab_size < config.vocab_size:
            self.notes.append(
                f"The text gives a vocabulary of {trained.vocab_size:,} (tokenizer.vocab_size={config.vocab_size:,} "
                "is the most): no further pair occurs twice."
            )
        return trained

    # -- writing ---------------------------------------------------------------------------------------------------

    def _write(self, tokenizer: Tokenizer) -> None:
        with (
            StoreWriter(self.folder, tokenizer=tokenizer) as train,
            StoreWriter(self.folder / "validation", tokenizer=tokenizer) as held_out,
        ):
            parts = {False: train, True: held_out}
            write = self._write_rows if self.data.format in ROW_FORMATS else self._write_documents
            write(tokenizer, parts)
        if not train.counts["examples"] and held_out.counts["examples"] and self.share:
            self.notes.append(
                "Everything fell into the held-out part (a tiny text, or equal rows), so nothing is held out."
            )
            self.share, self.done = 0.0, self.done - self.size
            self.hashes.clear()
            return self._write(tokenizer)
        if not train.counts["examples"]:
            names = ", ".join(str(source.path) for source in self.sources[:3])
            dropped = [f"{self.dropped[EMPTY]:,} empty lines"]
            dropped += [f"{count:,} {why}" for why, count in self.dropped.items() if why != EMPTY]
            raise LinnetError(
                f"{names}: there is no text to train on ({', '.join(dropped)}); check data.source."
            )
        return self._finish(train, held_out)

    def _finish(self, train: StoreWriter, held_out: StoreWriter) -> None:
        if leaked := self.dropped[HELD_OUT]:
            self.notes.append(f"{leaked:,} training rows are left out: each is equal to a held-out row.")
        shared = {"format": self.data.format, "notes": self.notes}
        fingerprint = ""
        if held_out.counts["examples"]:
            fingerprint = held_out.finish(extra={**shared, "notes": []})
        else:
            files.remove_folder(held_out.folder)
            if self.share or isinstance(self.data.validation, str):
                self.notes.append(f"No evaluation: {self._why_nothing_is_held_out(train)}.")
        known = zip(self.sources, self.hashes, strict=True)
        sources = [
            {
                "path": str(s.path),
                "bytes": s.bytes,
                "mtime_ns": s.mtime_ns,
                "held_out": s.held_out,
                "sha256": sha256,
            }
            for s, sha256 in known
        ]
        extra = {"config": self.config, "sources": sources, "dropped": self.dropped, "quarantined": 0}
        train.finish(extra={**shared, **extra, "validation_fingerprint": fingerprint})

    def _why_nothing_is_held_out(self, train: StoreWriter) -> str:
        rows = train.counts["rows"]
        if isinstance(self.data.validation, str):
            return f"data.validation={self.data.validation} holds no text"
        if self.data.format not in ROW_FORMATS:
            return f"data.validation={self.data.validation} of so short a text is nothing"
        if rows < FEWEST_ROWS:
            return f"{rows} rows are too few to hold some out ({FEWEST_ROWS} are needed)"
        return f"none of the {rows} rows fell into the share data.validation={self.data.validation}"

    def _write_documents(self, tokenizer: Tokenizer, parts: dict[bool, StoreWriter]) -> None:
        """`text`: each file is one example, cut where the held-out share begins.

        The training part is end-of-text + ids, the held-out part ids + end-of-text; a whole file has both.
        """
        end = [tokenizer.end_of_text]
        for source in self.sources:
            digest = hashlib.sha256()
            for held_out, start, stop in self._spans(source):
                part = parts[held_out]
                texts = read_text(source.path, start=start, stop=stop, observe=self._hashed(digest))
                ids = (ids for ids in tokenizer.encode_stream(self._counted(texts, part)) if ids)
                first = next(ids, None)
                if first is None:
                    continue  # a byte order mark and nothing else
                part.begin()
                part.counts["rows"] += 1
                if start == 0:
                    part.add(end, 0)
                    part.add(first, 1)
                else:  # its first token is no target, since nothing comes before it
                    part.add(first[:1], 0)
                    part.add(first[1:], 1)
                for more in ids:
                    part.add(more, 1)
                if stop == source.bytes:
                    part.add(end, 1)
            self.hashes.append(digest.hexdigest())

    def _counted(self, texts: Iterator[str], part: StoreWriter) -> Iterator[str]:
        for text in texts:
            part.counts["bytes"] += len(text) if text.isascii() else len(text.encode())
            yield text

    def _hashed(self, digest: Any) -> Callable[[bytes], None]:
        def observe(block: bytes) -> None:
            digest.update(block)
            self._observe(block)

        return observe

    def _write_rows(self, tokenizer: Tokenizer, parts: dict[bool, StoreWriter]) -> None:
        """Row formats: each row is one example, and is held out by its hash."""
        row_to_example = ROW_FORMATS[self.data.format]
        digests = {source: hashlib.sha256() for source in self.sources}
        for batch in _batches(self._rows(lambda source: self._hashed(digests[source]))):
            for held_out, part in parts.items():
                examples = [row_to_example(line) for side, line in batch if side is held_out]
                part.add_examples(example_ids(tokenizer, examples))
                part.counts["rows"] += len(examples)
                part.counts["bytes"] += _text_bytes(examples)
        self.hashes += [digest.hexdigest() for digest in digests.values()]


def _row_hash(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big")


def _text_bytes(examples: list[Example]) -> int:
    return len("".join(segment.text for example in examples for segment in example).encode())


def _batches(rows: Iterator[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """Rows in lists that are worth a parallel call: up to 2,048 of them or half a million characters."""
    batch: list[tuple[bool, str]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[1])
        if len(batch) == ROWS_AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
