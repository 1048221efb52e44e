"""From source files to a token store: read, split, tokenize, write; or find that it is all there already.

What   `prepare` returns the `Store` in a folder, and builds it if the one there does not fit.
Why    Training should start at once the second time, and must never start on half a store or on stale data.
How    A store fits if its settings and its source files (size and time, or else content) are the same, and is
       taken if all its hashes agree. A new one is built beside it (build.py) and renamed into place when complete.
"""

from __future__ import annotations

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
    with files.Lock(folder.parent / f".{folder.name}.lock"):
        files.repair_folder(folder)
        notes: list[str] = []
        sources = _sources(data, notes.append)
        given = tokenizer_from or _given_tokenizer(tokenizer)
        config = _config(data, tokenizer, given)
        store, reason = _fitting_store(folder, sources, config)
        if store:
            return store
        with files.new_folder(folder) as new:
            build = Build(new, data=data, sources=sources, config=config, notes=notes, progress=progress)
            build.run(given, tokenizer)
        store = Store.open(folder, verify=False)
        store.notes += [reason] if reason else []  # true of this time only, so it is not in the manifest
        return store


def _sources(data: DataConfig, say: Callable[[str], None]) -> list[Source]:
    named = [(path, False) for path in find_files(data.source, say=say)]
    if isinstance(data.validation, str):
        named += [(path, True) for path in find_files(data.validation, say=say)]
    stats = [(path, path.stat(), held_out) for path, held_out in named]
    return [Source(path, stat.st_size, stat.st_mtime_ns, held_out) for path, stat, held_out in stats]


def _given_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer that `config` names; None where one is trained on the text."""
    return None if config.name in ("auto", "bpe", "char") else load_tokenizer(config.name)


def _config(data: DataConfig, tokenizer: TokenizerConfig, given: Tokenizer | None) -> dict[str, Any]:
    """Everything but the sources that decides the bytes of the store."""
    kind = (
        given.fingerprint if given else "char" if tokenizer.name == "char" else f"bpe {tokenizer.vocab_size}"
    )
    share = "own source" if isinstance(data.validation, str) else data.validation
    return {"format": data.format, "validation": share, "columns": data.columns, "tokenizer": kind}


def _fitting_store(folder: Path, sources: list[Source], config: dict[str, Any]) -> tuple[Store | None, str]:
    """The store in `folder` if it fits; else None and, where that is worth a note, why not.

    Raises:
        LinnetError: the folder holds something that is not ours, which must not be replaced.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None, ""
    try:
        manifest = files.read_manifest(folder)
    except LinnetError as error:
        if not (folder / "tokens.bin").is_file():
            raise LinnetError(
                f"{folder} is not empty and holds no prepared data; set data.prepared to another folder."
            ) from error
        return None, f"Prepared again, since {error}"
    if manifest.get("kind") != KIND:
        raise LinnetError(
            f"{folder} holds something else than prepared data; set data.prepared to another folder."
        )
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
