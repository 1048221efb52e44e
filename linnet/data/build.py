"""Building a token store: cut the sources into spans, map each to a part, merge the parts.

What   `Build(...).run()` fills an empty folder.
Why    Memory must stay flat on files of any size, a build that was killed must not begin anew, and the same files and
       settings must give the same bytes, whoever worked on them and in whatever order.
How    map.py makes a part of one span, engines.py runs it for many, merge.py writes the store. The parts lie beside
       the store while it is built; a part that is complete is taken as it is. A tokenizer that is trained on the data
       needs a pass of its own before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet import files
from linnet.data.engines import run
from linnet.data.fates import HELD_OUT, NEAR_HELD_OUT, Fates, decide
from linnet.data.formats import RowFormat
from linnet.data.inputs import Input, Piece, pieces_of
from linnet.data.map import EMPTY, Job, MapPlan, map_job, read_rows, remember
from linnet.data.merge import FEWEST_ROWS, Merge, Part, read_ids
from linnet.data.reading.records import Span
from linnet.data.reading.text import read_text
from linnet.data.store import StoreWriter
from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer, cut_stream, train_bpe, train_char

if TYPE_CHECKING:
    from linnet.config import DataConfig, TokenizerConfig

TOKENIZER_SAMPLE = 32 << 20  # bytes of text that a BPE is trained on
WORTH_ACCELERATING = 1 << 20  # bytes of sources; an optional faster tokenizer takes 0.3 s to load
WORTH_PROCESSES = 64 << 20  # bytes of sources; below that, starting processes costs more than it saves
UNLIMITED = 1 << 62

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), over all passes."""


@dataclass(frozen=True)
class Task:
    """A job with the folder of its part: what a worker is given."""

    job: Job
    plan: MapPlan
    folder: Path


def work(task: Task, *, observe: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """Make a part unless it is there; returns its counts. Runs in any process."""
    counts = _counts_of(task.folder)
    return counts or map_job(task.job, task.plan, task.folder, observe=observe)


def _counts_of(part: Path) -> dict[str, Any] | None:
    """Of a part that is there and undamaged."""
    try:
        return files.verify_manifest(part)
    except LinnetError:
        return None


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Build:
    """One building of a store: the state that its passes share."""

    def __init__(
        self,
        folder: Path,
        *,
        parts: Path,
        data: DataConfig,
        inputs: list[Input],
        size: int | None,
        config: dict[str, Any],
        notes: list[str],
        progress: Progress,
    ) -> None:
        self.folder, self.parts, self.data, self.inputs = folder, parts, data, inputs
        self.config, self.notes, self.progress = config, notes, progress
        has_own_split = any(one.held_out for one in inputs)
        self.share = data.validation if isinstance(data.validation, float) and not has_own_split else 0.0
        self.keep = read_ids(data.keep, key="data.keep")
        self.drop = read_ids(data.drop, key="data.drop")
        self.size = UNLIMITED if size is None else size
        self.pieces = self._cut()
        if all(piece.held_out for _, piece in self.pieces):
            self._hold_nothing_out()
            self.pieces = self._cut()
        self.jobs = self._jobs()
        self.done = 0
        self.total = sum(job.bytes for job in self.jobs)

    def _cut(self) -> list[tuple[Input, Piece]]:
        return [
            (one, piece)
            for one in self.inputs
            for piece in pieces_of(one, format=self.data.format, share=self.share)
        ]

    def _hold_nothing_out(self) -> None:
        self.share = 0.0
        self.notes.append(
            "Everything fell into the held-out part (a tiny text, or equal rows), so nothing is held out."
        )

    def _jobs(self) -> list[Job]:
        formats: dict[str, RowFormat] = {}
        for one in self.inputs:
            if not one.is_document(self.data.format) and one.kind not in formats:
                formats[one.kind] = one.row_format(self.data)
        return [
            Job(
                piece.span,
                None if one.is_document(self.data.format) else formats[one.kind],
                piece.bytes,
                self.data.max_rows,
            )
            for one, piece in self.pieces
        ]

    def run(self, given: Tokenizer | None, config: TokenizerConfig) -> None:
        """Fill the folder; `given` is taken as the tokenizer, else one is trained."""
        if not given:
            self.total *= 2
            given = self._train_tokenizer(config)
        for place in (self.folder / "tokenizer", self.parts / "tokenizer"):
            files.make_folder(place)
            # 1024 stands for "not known yet": the model folder gets the model's own figure.
            given.save(place, n_positions=1024)
        remember(given)
        if self.total > WORTH_ACCELERATING:
            given.accelerate()
        merge = Merge(self._map(given.fingerprint), tokenizer=given)
        merge.refuse_bad(self.data.max_bad)
        self._write(merge)

    # -- the tokenizer -------------------------------------------------------------------------------------------

    def _train_tokenizer(self, config: TokenizerConfig) -> Tokenizer:
        if config.name == "char":
            return train_char(self._texts(everything=True))
        trained = train_bpe(self._thinned(), vocab_size=config.vocab_size)
        if trained.vocab_size < config.vocab_size:
            self.notes.append(
                f"The text gives a vocabulary of {trained.vocab_size:,} (tokenizer.vocab_size={config.vocab_size:,} "
                "is the most): no further pair occurs twice."
            )
        return trained

    def _thinned(self) -> Iterator[str]:
        """The training part, evenly thinned out if it is long."""
        keep = min(1.0, 2 * TOKENIZER_SAMPLE / self.total)
        for number, text in enumerate(self._texts(everything=False)):
            if int((number + 1) * keep) > int(number * keep):
                yield text

    def _texts(self, *, everything: bool) -> Iterator[str]:
        """All text, or that which is not held out."""
        seen = 0
        waiting: list[str] = []  # of rows to be held out, if there are rows enough for that
        for (_, piece), job in zip(self.pieces, self.jobs, strict=True):
            if piece.held_out and not everything:
                self._advance(job.bytes)
                continue
            with self._reading(job) as observe:
                if job.row_format is None:
                    yield from _document_texts(job, observe=observe)
                    continue
                for row in read_rows(job, None, observe=observe):
                    seen += 1
                    text = job.row_format.text(row.turns)
                    if everything or row.id >= self.share * 2**64:
                        yield text
                    elif seen < FEWEST_ROWS:
                        waiting.append(text)
                    if seen == FEWEST_ROWS:
                        waiting.clear()
                yield job.row_format.marks
        yield from waiting

    # -- map -------------------------------------------------------------------------------------------------------

    def _map(self, fingerprint: str) -> list[Part]:
        """Make all parts; those of `data.max_rows` where that is set."""
        filters = self.data.filters
        rows = any(job.row_format for job in self.jobs)
        plan = MapPlan(
            tokenizer=self.parts / "tokenizer",
            fingerprint=fingerprint,
            filters=filters,
            size=self.size,
            sketched=rows and bool(self.data.validation or filters.near_duplicates),
            keep=frozenset(self.keep.tolist()),
        )
        tasks = [Task(job, plan, self.parts / f"{number:06}") for number, job in enumerate(self.jobs)]
        parts: list[Part] = []
        for held_out in (False, True):
            chosen = [i for i, (_, piece) in enumerate(self.pieces) if piece.held_out is held_out]
            found = 0
            for i, counts in zip(chosen, self._run([tasks[i] for i in chosen]), strict=False):
                one, piece = self.pieces[i]
                parts.append(
                    Part(
                        tasks[i].folder,
                        one.file.name,
                        counts,
                        held_out=held_out,
                        document=self.jobs[i].row_format is None,
                        begins=piece.begins,
                        ends=piece.ends,
                    )
                )
                found += counts["rows"]
                if self.data.max_rows and found >= self.data.max_rows:
                    break
        return sorted(parts, key=lambda part: part.folder.name)

    def _run(self, tasks: list[Task]) -> Iterator[dict[str, Any]]:
        workers = self.data.workers
        if workers == "auto":
            workers = _cores() if self.total >= WORTH_PROCESSES else 1
        if self.data.engine == "local" and (workers == 1 or len(tasks) == 1):
            for task in tasks:
                with self._reading(task.job) as observe:
                    counts = work(task, observe=observe)
                yield counts
            return
        for task, counts in zip(
            tasks, run(work, tasks, engine=self.data.engine, workers=workers), strict=False
        ):
            self._advance(task.job.bytes)
            yield counts

    @contextlib.contextmanager
    def _reading(self, job: Job) -> Iterator[Callable[[int], None]]:
        """What to call with the bytes that were read; at the end all of the job's are."""
        before = self.done

        def observe(count: int) -> None:
            self._advance(min(count, before + job.bytes - self.done))

        yield observe
        self._advance(before + job.bytes - self.done)

    def _advance(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)

    # -- the store -------------------------------------------------------------------------------------------------

    def _write(self, merge: Merge) -> None:
        fates = self._decide(merge)
        nothing_left = not merge.documents and not (~fates.held_out & ~fates.left_out).any()
        if self.share and nothing_left and fates.held_out.any():
            self._hold_nothing_out()
            fates = self._decide(merge)
        with (
            StoreWriter(self.folder, tokenizer=merge.tokenizer) as train,
            StoreWriter(self.folder / "validation", tokenizer=merge.tokenizer) as held_out,
        ):
            merge.write(fates, train, held_out)
        if not train.counts["examples"]:
            names = ", ".join(one.file.name for one in self.inputs[:3])
            dropped = [f"{merge.dropped[EMPTY]:,} empty lines"]
            dropped += [f"{count:,} {why}" for why, count in merge.dropped.items() if why != EMPTY]
            dropped += [f"{merge.bad:,} that cannot be used"] if merge.bad else []
            raise LinnetError(
                f"{names}: there is no text to train on ({', '.join(dropped)}); check data.source."
            )
        self._finish(merge, fates, train, held_out)

    def _decide(self, merge: Merge) -> Fates:
        return decide(
            merge.ids,
            own_held_out=merge.own_held_out,
            share=self.share if len(merge.ids) >= FEWEST_ROWS else 0.0,
            max_rows=self.data.max_rows,
            sketches=merge.sketches(),
            filters=self.data.filters,
            drop=self.drop,
            keep=self.keep,
        )

    def _finish(self, merge: Merge, fates: Fates, train: StoreWriter, held_out: StoreWriter) -> None:
        for why, what in ((HELD_OUT, "equal"), (NEAR_HELD_OUT, "nearly equal")):
            if leaked := merge.dropped[why]:
                self.notes.append(f"{leaked:,} training rows are left out: each is {what} to a held-out row.")
        if merge.bad:
            self.notes.append(f"{merge.bad:,} rows cannot be used and are set aside in quarantine.jsonl.")
        shared = {"format": self.data.format, "notes": self.notes}
        fingerprint = ""
        if held_out.counts["examples"]:
            fingerprint = held_out.finish(extra={**shared, "notes": []})
        else:
            files.remove_folder(held_out.folder)
            if self.share or isinstance(self.data.validation, str):
                self.notes.append(f"No evaluation: {self._why_nothing_is_held_out(merge, train)}.")
        extra = {
            "config": self.config,
            "sources": [one.identity() for one in self.inputs],
            "dropped": dict(merge.dropped),
            "changed": dict(merge.changed),
            "quarantined": merge.bad,
            "validation_fingerprint": fingerprint,
        }
        train.finish(
            extra={**shared, **extra}, quarantine=merge.quarantine_lines(), dropped=merge.dropped_lines(fates)
        )

    def _why_nothing_is_held_out(self, merge: Merge, train: StoreWriter) -> str:
        if isinstance(self.data.validation, str):
            return f"data.validation={self.data.validation} holds no text"
        rows = train.counts["rows"]
        if merge.documents:
            return f"data.validation={self.data.validation} of so short a text is nothing"
        if rows < FEWEST_ROWS:
            return f"{rows} rows are too few to hold some out ({FEWEST_ROWS} are needed)"
        return f"none of the {rows} rows fell into the share data.validation={self.data.validation}"


def _document_texts(job: Job, *, observe: Callable[[int], None]) -> Iterator[str]:
    span = job.span
    assert isinstance(span, Span)
    texts = read_text(span.path, start=span.start, stop=span.stop, observe=lambda block: observe(len(block)))
    for pieces in cut_stream(texts):
        yield from pieces
