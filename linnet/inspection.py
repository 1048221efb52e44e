"""`linnet inspect`: what will be learned of a recipe's data, or of a file that nobody has looked at yet.

What   `inspect(subject, ...)` gives a `Report`; `show` prints it, as a table, a page or JSON.
Why    Mistakes in the data are cheap before a training and dear after it.
How    A recipe's data is prepared as for training and its store is measured (linnet/look/counts.py). A bare file is
       looked at first (linnet/look/guess.py); if a format fits it is prepared for that into a folder that is removed
       afterwards, with the tokenizer of gpt2 if Hugging Face's cache has it. Nothing is downloaded for a bare file.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from linnet.config import DataConfig, Recipe
from linnet.data.inputs import Input, find_inputs
from linnet.data.reading.sources import find_files
from linnet.data.store import Store
from linnet.errors import DiskError, LinnetError, UsageError
from linnet.hub import missing_tokenizer, no_telemetry
from linnet.look import counts
from linnet.look.first import first_blocks, first_examples
from linnet.look.guess import KINDS, RECIPES, guess_file, train_command
from linnet.look.others import other_files
from linnet.look.page import write_page
from linnet.look.report import LeftOut, Report
from linnet.look.strange import find_duplicates, find_strange
from linnet.look.survey import ROWS, SeenRow, Survey, survey
from linnet.look.terminal import print_report
from linnet.preparing import LARGEST_WINDOW, initial_model, prepare_store
from linnet.recipe import build_recipe, parse_overrides, read_recipe_values, recipe_names
from linnet.tokenizer import HUB_FILES
from linnet.track.progress import Progress

LARGE = 256 << 20  # bytes of a bare file, from which on only its first rows are prepared


def show(subject: str, *, overrides: Sequence[str], html: Path | None, as_json: bool, rows: int) -> None:
    """Print the report; with `html`, write it as a page as well."""
    if rows < 0:
        raise UsageError(f"--rows {rows} must be 0 or more.")
    report = inspect(subject, overrides=overrides, rows=rows)
    if html is not None:
        write_page(html, report)
        print(f"The page is {html}.", file=sys.stderr)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report)


def inspect(subject: str, *, overrides: Sequence[str] = (), rows: int = 3) -> Report:
    """Look at the data of a recipe, or at a file, folder or glob.

    Args:
        rows: how many of the first examples the report holds.

    Raises:
        LinnetError: what the input lacks, in one sentence.
    """
    keys = parse_overrides(overrides)
    if subject in recipe_names() or subject.endswith(".toml"):
        words = [subject, *overrides]
        return _of_recipe(
            build_recipe(read_recipe_values(subject), keys, where=subject),
            Report(subject=shlex.join(words), command=f"linnet train {shlex.join(words)}"),
            rows=rows,
        )
    return _of_source(subject, keys, overrides=overrides, rows=rows)


# -- a recipe --------------------------------------------------------------------------------------------------------


def _of_recipe(recipe: Recipe, report: Report, *, rows: int) -> Report:
    initial = initial_model(recipe)
    positions = _positions(initial)
    store = prepare_store(recipe, tokenizer_from=initial, n_positions=positions)
    return _measured(recipe, store, report, positions=positions, rows=rows)


def _measured(recipe: Recipe, store: Store, report: Report, *, positions: int | None, rows: int) -> Report:
    """The report with all that prepared data tells."""
    from linnet.setup import choose_block, choose_model  # With torch, whose import takes 2 s.

    if positions is None:
        positions = choose_model(recipe, store=store, given=None).n_positions
    inputs = find_inputs(recipe.data, say=lambda note: None)
    seen = _survey(inputs, recipe)
    block = choose_block(recipe, store=store, n_positions=positions)
    both, training, validation = counts.sum_counts(store)
    report = replace(
        report,
        data_format=store.format,
        sources=store.manifest["sources"],
        prepared=str(store.folder),
        notes=[*report.notes, *store.notes, *seen.marks()],
        counts=both,
        training=training,
        validation=validation,
        kept_share=counts.kept_share(both),
        left_out=counts.left_out(store, seen.changed_samples()),
        packing=counts.measure_packing(store, block),
        lengths=counts.measure_lengths(store),
    )
    known = counts.row_ids(store)
    kept = [row for row in seen.rows if row.id in known]
    report = _with_rows(report, kept, whole=seen.whole)
    tokenizer = store.tokenizer()
    if document := _document(inputs, recipe):
        first = first_blocks(document, tokenizer, block_size=int(block.value), most=rows)
    else:
        size = store.manifest["config"]["size"]
        first = first_examples(kept, tokenizer, size=size, most=rows)
    return replace(report, first=first)


def _positions(initial: Path | None) -> int | None:
    """The window of the initial model; None from scratch."""
    if initial is None:
        return None
    from linnet.model.pretrained import read_config  # With torch.

    return read_config(initial).n_positions


class _RowsProgress(Progress):
    """`looking at 12,345 rows`"""

    def fields(self) -> list[str]:
        return [f"looking at {self.done:,} {'row' if self.done == 1 else 'rows'}"]


def _survey(inputs: Sequence[Input], recipe: Recipe) -> Survey:
    with _RowsProgress(0) as progress:
        return survey(inputs, recipe.data, progress=progress.update)


def _with_rows(report: Report, kept: Sequence[SeenRow], *, whole: bool) -> Report:
    if not kept:
        return report
    return replace(
        report,
        looked_at=len(kept),
        whole=whole,
        duplicates=find_duplicates(kept),
        strange=find_strange(kept),
    )


def _document(inputs: Sequence[Input], recipe: Recipe) -> Path | None:
    """The first file that is one running text."""
    for one in inputs:
        if one.is_document(recipe.data.format):
            return one.local_path()
    return None


# -- a bare file -----------------------------------------------------------------------------------------------------


def _of_source(source: str, keys: Mapping[str, Any], *, overrides: Sequence[str], rows: int) -> Report:
    if source.startswith("hf:"):
        raise UsageError(
            f"{source} is on the hub; say as what it is to be read: linnet inspect math data.source={source}"
        )
    if "data.source" in keys:
        raise UsageError(f"The source is {source} already; leave data.source out.")
    notes: list[str] = []
    try:
        paths = find_files(source, say=notes.append)
    except LinnetError as error:
        if Path(source).exists() or any(sign in source for sign in "*?[/\\."):
            raise
        names = ", ".join(recipe_names())
        raise UsageError(
            f"There is no recipe and no file named {source}; built-in recipes are {names}."
        ) from error
    guess = guess_file(paths[0], source=source)
    if others := other_files(paths, guess):
        notes.append(others)
    sources = [{"path": str(path), "bytes": path.stat().st_size, "held_out": False} for path in paths]
    report = Report(subject=source, sources=sources, notes=notes, guess=guess)
    data_format = keys.get("data.format", guess.format)
    if data_format is None or (guess.remedy and "data.format" not in keys):
        return report
    if "data.format" in keys:
        report = replace(report, guess=replace(guess, format=data_format, why="", otherwise=""))
    command = shlex.join([*shlex.split(train_command(data_format, source)), *overrides])
    report = replace(report, data_format=data_format, command=command)
    large = sum(path.stat().st_size for path in paths) > LARGE and "data.max_rows" not in keys
    with tempfile.TemporaryDirectory(prefix="linnet-inspect-") as folder:
        recipe = _recipe_for(source, data_format, keys, large=large, folder=Path(folder))
        if large and data_format == "text" and guess.kind == KINDS["txt"]:
            missing = (
                f"Over {LARGE >> 20} MB tokens are estimated, as bytes / 4; `linnet prepare` counts them."
            )
            return _without_tokens(recipe, replace(report, missing=missing), rows=rows)
        if large:
            more = f"It is large, so all figures are of its first {ROWS:,} rows; data.max_rows=... looks at more."
            report = replace(report, notes=[*notes, more])
        return _prepared_aside(recipe, report, keys, rows=rows)


def _recipe_for(
    source: str, data_format: str, keys: Mapping[str, Any], *, large: bool, folder: Path
) -> Recipe:
    """The built-in recipe for the format, with this source. Bad rows do not stop it: they are what one wants to see."""
    values: dict[str, Any] = {
        "data.source": source,
        "data.format": data_format,
        "data.max_bad": 1.0,
        "data.prepared": str(folder / "prepared"),
        "model.init_from": "scratch",
    }
    if large:
        values["data.max_rows"] = ROWS
    name = RECIPES[data_format]
    return build_recipe(read_recipe_values(name), {**values, **keys}, where=name)


def _prepared_aside(recipe: Recipe, report: Report, keys: Mapping[str, Any], *, rows: int) -> Report:
    """As of a recipe, or without tokens where there is no tokenizer."""
    initial = initial_model(recipe) if recipe.model.init_from != "scratch" else None
    tokenizer_from = initial
    if initial is None and "tokenizer.name" not in keys:
        tokenizer_from = _cached_gpt2()
        if tokenizer_from is None:
            missing = (
                "The tokenizer of gpt2 is not on this machine, so tokens are estimated as bytes / 4, and the packing "
                "is not known; add tokenizer.name=FOLDER, or tokenizer.name=bpe to train one on this text."
            )
            return _without_tokens(recipe, replace(report, missing=missing), rows=rows)
    positions = _positions(initial) or LARGEST_WINDOW
    try:
        store = prepare_store(recipe, tokenizer_from=tokenizer_from, n_positions=positions)
    except DiskError:
        raise
    except LinnetError as error:
        return _without_tokens(recipe, replace(report, missing=str(error)), rows=rows)
    full = _measured(recipe, store, report, positions=positions, rows=rows)
    if "data.prepared" in keys:
        return full
    # What preparing says of its folder is true of a folder that is gone.
    notes = [note for note in full.notes if "quarantine.jsonl" not in note]
    bad, most = full.left_out.quarantined, DataConfig().max_bad
    if "data.max_bad" not in keys and bad > most * (bad + full.counts["rows"]):
        share = f"More than {most:.0%} of the rows cannot be used"
        notes.append(f"{share}, so a training would stop; mend them, or set data.max_bad.")
    return replace(full, prepared="", notes=notes)


def _cached_gpt2() -> Path | None:
    """The folder of gpt2's tokenizer in Hugging Face's cache; the network is not asked."""
    no_telemetry()
    from huggingface_hub import snapshot_download

    for name in ("gpt2", "openai-community/gpt2"):
        with contextlib.suppress(Exception):  # The client has a dozen kinds for "it is not there".
            folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=True))
            if not missing_tokenizer(folder):
                return folder
    return None


def _without_tokens(recipe: Recipe, report: Report, *, rows: int) -> Report:
    """What can be said of the rows alone."""
    try:
        inputs = find_inputs(recipe.data, say=lambda note: None)
        seen = _survey(inputs, recipe)
    except LinnetError as error:
        return replace(report, missing=str(error), command="")
    document = _document(inputs, recipe)
    kept = [row for row in seen.rows if not row.dropped]
    if document:
        first = first_blocks(document, None, block_size=LARGEST_WINDOW, most=rows)
        total = sum(source["bytes"] for source in report.sources)
        measured: dict[str, Any] = {"counts": {"rows": len(inputs), "tokens": total // 4, "bytes": total}}
    else:
        first = first_examples(kept, None, size=None, most=rows)
        measured = counts.estimate(kept)
    dropped = {rule: sum(row.dropped == rule for row in seen.rows) for rule in seen.dropped_samples()}
    report = replace(
        report,
        notes=[*report.notes, *seen.marks()],
        estimated=["tokens", "learned_tokens"],
        **measured,
        left_out=LeftOut(
            dropped=dropped | ({"empty line": seen.empty} if seen.empty else {}),
            dropped_samples=seen.dropped_samples(),
            changed_samples=seen.changed_samples(),
            quarantined=sum(seen.reasons.values()),
            reasons=dict(seen.reasons.most_common()),
            quarantine=seen.bad,
        ),
        first=first,
    )
    return _with_rows(report, kept, whole=seen.whole)
