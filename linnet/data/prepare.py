"""From source files to a token store: read, split, tokenize, write; or find that it is all there already.

What   `prepare` returns the `Store` in a folder, and builds it if the one there does not fit.
Why    Training should start at once the second time, and must never start on half a store or on stale data.
How    A store fits if its settings and its source files (size and time, or else content) are the same, and is
       taken if all its hashes agree. A new one is built beside it (build.py) and renamed into place when complete.
"""

from __future__ import annotations

import contextlib
import glob
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet import files
from linnet.data.build import Build, Progress
from linnet.data.inputs import Input, find_inputs
from linnet.data.map import EMPTY
from linnet.data.merge import read_ids, share_above
from linnet.data.store import KIND, Store, same_json
from linnet.errors import LinnetError, OutOfMemoryError, Stopped
from linnet.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from linnet.config import DataConfig, TokenizerConfig


PARTS_FORMAT = 2  # of what map.py writes; parts of another are not used
KEPT_DAYS = (
    7  # that parts of a stopped preparation wait to be gone on with, when its recipe has changed since
)
WINDOWED = ("instruct", "chat", "papers")  # Their rows have context that every window carries.


def _no_progress(done: int, total: int) -> None:
    pass


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    folder: Path,
    tokenizer_from: Tokenizer | None = None,
    size: int | None = None,
    progress: Progress = _no_progress,
) -> Store:
    """The token store of `data` in `folder`, built if it is not there or does not fit any more.

    Args:
        tokenizer_from: the initial model's tokenizer; it is taken instead of the one that `tokenizer` names.
        size: most ids of an example of a row with targets; a longer row becomes several (see windows.py).
        progress: called with (bytes done, bytes in all).

    Raises:
        LinnetError: a source that is missing, empty, no text, or not UTF-8; a folder that holds something else.
        DiskError: the disk is full. What was in `folder` before is still there.
        RunLockedError: another process prepares the same folder.
    """
    place = folder.resolve()  # "." has no name of its own
    _refuse_foreign(place, shown=folder)
    with files.Lock(place.parent / f".{place.name}.lock", of=folder):
        files.repair_folder(place)
        notes: list[str] = []
        inputs = find_inputs(data, say=notes.append)
        given = tokenizer_from or _given_tokenizer(tokenizer)
        config = _config(data, tokenizer, given, size if data.format in WINDOWED else None)
        store, reason = _fitting_store(folder, inputs, config)
        if store:
            _refuse_bad(store, data.max_bad)
            return store
        if Path.cwd().is_relative_to(place):
            raise LinnetError(
                f"data.prepared={folder} is the folder that you are in, and would be replaced; name one below it: "
                "data.prepared=prepared."
            )
        left = _clear_abandoned(place)
        with files.new_folder(place) as new, _parts_folder(place, inputs, config) as parts:
            build = Build(
                new,
                parts=parts,
                data=data,
                inputs=inputs,
                size=config["size"],
                config=config,
                notes=notes,
                progress=progress,
            )
            build.run(given, tokenizer)
        store = Store.open(folder, verify=False)
        # True of this time only, so it is not in the manifest.
        store.notes += [*([reason] if reason else []), *left]
        return store


def _given_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer that `config` names; None where one is trained on the text."""
    return None if config.name in ("auto", "bpe", "char") else load_tokenizer(config.name)


def _config(
    data: DataConfig, tokenizer: TokenizerConfig, given: Tokenizer | None, size: int | None
) -> dict[str, Any]:
    """Everything but the sources that decides the bytes of the store."""
    kind = (
        given.fingerprint if given else "char" if tokenizer.name == "char" else f"bpe {tokenizer.vocab_size}"
    )
    share = "own source, not trained on" if isinstance(data.validation, str) else data.validation
    lists = {key: read_ids(getattr(data, key), key=f"data.{key}").tolist() for key in ("drop", "keep")}
    asked = data.model_dump(include={"format", "columns", "filters", "learn", "target", "reads", "max_rows"})
    return {**asked, **lists, "validation": share, "size": size, "tokenizer": kind}


@contextlib.contextmanager
def _parts_folder(place: Path, inputs: list[Input], config: dict[str, Any]) -> Iterator[Path]:
    """The folder of the parts, beside the store. After a kill it is there, and is used if it belongs to the same."""
    folder = place.with_name(f".{place.name}.parts")
    identity = {"format": PARTS_FORMAT, "inputs": [repr(one) for one in inputs], "config": config}
    known = folder / "identity.json"
    try:
        fits = json.loads(known.read_bytes()) == json.loads(json.dumps(identity))
    except (OSError, ValueError):
        fits = False
    if folder.exists() and not fits:
        files.remove_folder(folder)
    files.make_folder(folder)
    files.remove_leftovers(folder)
    try:
        if not fits:
            files.write_json(known, identity)
        yield folder
    except (Stopped, OutOfMemoryError):
        raise
    except Exception:  # What went wrong will go wrong again, and a full disk wants its room back.
        with contextlib.suppress(OSError, LinnetError):
            files.remove_folder(folder)
        raise
    files.remove_folder(folder)


def _clear_abandoned(place: Path) -> list[str]:
    """Remove old parts that stopped preparations of this recipe with other settings left; sentences of newer ones.

    They are known by the name, RECIPE-<hash>: with other settings nobody looks for them again. What a process works on
    stays, and so does for a week what may yet be gone on with.
    """
    named = re.fullmatch(r"(.+)-[0-9a-f]{12}", place.name)
    if not named:
        return []
    kept: list[str] = []
    for parts in sorted(place.parent.glob(f".{glob.escape(named[1])}-{'[0-9a-f]' * 12}.parts")):
        other = place.with_name(parts.name.removeprefix(".").removesuffix(".parts"))
        if other == place or not (parts / "identity.json").is_file():
            continue
        lock = files.Lock(other.with_name(f".{other.name}.lock"), of=other)
        with contextlib.suppress(LinnetError, OSError), lock:
            if time.time() - parts.stat().st_mtime < KEPT_DAYS * 24 * 3600:
                kept.append(
                    f"{parts} is left of a preparation that was stopped, with other settings; it is used if that one "
                    f"goes on, and removed after {KEPT_DAYS} days if not."
                )
                continue
            files.repair_folder(other)
            files.remove_folder(parts)
    return kept


def _refuse_foreign(place: Path, *, shown: Path) -> None:
    """Raise where `place` holds something that is not ours, which must not be replaced."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        if files.read_manifest(place).get("kind") == KIND:
            return
    except LinnetError:
        if (place / "tokens.bin").is_file():
            return  # A damaged store.
    what = "is not empty and holds no prepared data" if place.is_dir() else "is a file"
    raise LinnetError(f"{shown} {what}; set data.prepared to another folder.")


def _fitting_store(folder: Path, inputs: list[Input], config: dict[str, Any]) -> tuple[Store | None, str]:
    """The store in `folder` if it fits; else None and, where that is worth a note, why not."""
    if not folder.exists() or not any(folder.iterdir()):
        return None, ""
    try:
        manifest = files.read_manifest(folder)
    except LinnetError as error:
        return None, f"Prepared again, since {error}"
    if not same_json(manifest["config"], config) or not _same_inputs(manifest["sources"], inputs):
        return None, ""
    try:
        return Store.open(folder), ""
    except LinnetError as error:
        return None, f"Prepared again, since {error}"


def _refuse_bad(store: Store, most: float) -> None:
    """Raise where the store was prepared with a larger data.max_bad than `most`, and needed it."""
    bad, rows = store.manifest["quarantined"], store.manifest["counts"]["rows"]
    rows += store.validation.manifest["counts"]["rows"] if store.validation else 0
    seen = bad + rows + sum(count for why, count in store.manifest["dropped"].items() if why != EMPTY)
    if bad > most * seen:
        enough = share_above(bad / seen)
        raise LinnetError(
            f"{bad:,} of {seen:,} rows cannot be used, more than data.max_bad={most:g}; mend those that "
            f"{store.folder / 'quarantine.jsonl'} names, or set data.max_bad={enough:g} to go on without them."
        )


def _same_inputs(known: list[dict[str, Any]], inputs: list[Input]) -> bool:
    """The same files in the same order."""
    return len(known) == len(inputs) and all(one.is_same(old) for old, one in zip(known, inputs, strict=True))
