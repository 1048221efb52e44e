"""From source files to a token store: read, split, tokenize, write; or find that it is all there already.

What   `prepare` returns the `Store` in a folder, and builds it if the one there does not fit.
Why    Training should start at once the second time, and must never start on half a store or on stale data.
How    A store fits if its settings and its source files (size and time, or else content) are the same, and is
       taken if all its hashes agree. A new one is built beside it (build.py) and renamed into place when complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet import files
from linnet.data.build import Build, Progress, Source
from linnet.data.sources import find_files
from linnet.data.store import KIND, Store, same_json
from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from linnet.config import DataConfig, TokenizerConfig


def _no_progress(done: int, total: int) -> None:
    pass


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    folder: Path,
    tokenizer_from: Tokenizer | None = None,
    progress: Progress = _no_progress,
) -> Store:
    """The token store of `data` in `folder`, built if it is not there or does not fit any more.

    Args:
        tokenizer_from: the initial model's tokenizer; it is taken instead of the one that `tokenizer` names.
        progress: called with (bytes done, bytes in all).

    Raises:
        LinnetError: a source that is missing, empty, no text, or not UTF-8; a folder that holds something else.
        DiskError: the disk is full. What was in `folder` before is still there.
        RunLockedError: another process prepares the same folder.
    """
    place = folder.resolve()  # "." has no name of its own
    _refuse_foreign(place, shown=folder)
    with files.Lock(place.parent / f".{place.name}.lock"):
        files.repair_folder(place)
        notes: list[str] = []
        sources = _sources(data, notes.append)
        given = tokenizer_from or _given_tokenizer(tokenizer)
        config = _config(data, tokenizer, given)
        store, reason = _fitting_store(folder, sources, config)
        if store:
            return store
        if Path.cwd().is_relative_to(place):
            raise LinnetError(
                f"data.prepared={folder} is the folder that you are in, and would be replaced; name one below it: "
                "data.prepared=prepared."
            )
        with files.new_folder(place) as new:
            build = Build(new, data=data, sources=sources, config=config, notes=notes, progress=progress)
            build.run(given, tokenizer)
        store = Store.open(folder, verify=False)
        store.notes += [reason] if reason else []  # true of this time only, so it is not in the manifest
        return store


def _sources(data: DataConfig, say: Callable[[str], None]) -> list[Source]:
    """The files of both keys, those to train on first; a file that both name is only held out."""
    held_out: list[Path] = []
    if isinstance(data.validation, str):
        _refuse_share(data.validation)
        held_out = find_files(data.validation, key="data.validation", say=say)
    named = find_files(data.source, say=say)
    twice = {path.resolve() for path in held_out}
    train = [path for path in named if path.resolve() not in twice]
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
    stats = [(path, path.stat(), False) for path in train] + [(path, path.stat(), True) for path in held_out]
    return [Source(path, stat.st_size, stat.st_mtime_ns, is_out) for path, stat, is_out in stats]


def _refuse_share(validation: str) -> None:
    """Raise where a text, like "10%" or "0,1", means a share and not a file."""
    found = re.fullmatch(r"\s*(\d*[.,]?\d+)\s*(%?)\s*", validation)
    if not found or Path(validation).exists():
        return
    share = float(found[1].replace(",", ".")) / (100 if found[2] else 1)
    meant = f"data.validation={share:g}" if share < 1 else "a number below 1, as in data.validation=0.1"
    raise LinnetError(f"data.validation={validation} is no file; a share is written as a number: {meant}.")


def _given_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer that `config` names; None where one is trained on the text."""
    return None if config.name in ("auto", "bpe", "char") else load_tokenizer(config.name)


def _config(data: DataConfig, tokenizer: TokenizerConfig, given: Tokenizer | None) -> dict[str, Any]:
    """Everything but the sources that decides the bytes of the store."""
    kind = (
        given.fingerprint if given else "char" if tokenizer.name == "char" else f"bpe {tokenizer.vocab_size}"
    )
    share = "own source, not trained on" if isinstance(data.validation, str) else data.validation
    return {
        "format": data.format,
        "validation": share,
        "columns": data.columns.model_dump(),
        "tokenizer": kind,
    }


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


def _fitting_store(folder: Path, sources: list[Source], config: dict[str, Any]) -> tuple[Store | None, str]:
    """The store in `folder` if it fits; else None and, where that is worth a note, why not."""
    if not folder.exists() or not any(folder.iterdir()):
        return None, ""
    try:
        manifest = files.read_manifest(folder)
    except LinnetError as error:
        return None, f"Prepared again, since {error}"
    if not same_json(manifest["config"], config) or not _same_sources(manifest["sources"], sources):
        return None, ""
    try:
        return Store.open(folder), ""
    except LinnetError as error:
        return None, f"Prepared again, since {error}"


def _same_sources(known: list[dict[str, Any]], sources: list[Source]) -> bool:
    """Same path, size and modification time, or else the same content, for each file in order."""
    if len(known) != len(sources):
        return False
    for old, new in zip(known, sources, strict=True):
        if (old["bytes"], old["held_out"]) != (new.bytes, new.held_out):
            return False
        untouched = (old["path"], old["mtime_ns"]) == (str(new.path), new.mtime_ns)
        if not untouched and files.sha256_file(new.path) != old["sha256"]:
            return False
    return True
