"""Data sets on the hub: from `hf:owner/name[/config][@revision]` to the data files of its splits.

What   `find_hub_set` says which repository, revision, config and splits are taken, and lists their files.
Why    Names move, some data sets are only a script, some are cut short: what is taken must be said, and be the same
       the next time, with or without a network.
How    `datasets` finds configs and splits; it runs no code. A data set that is only a script is taken from the Parquet
       branch that the hub makes of it, or from a mirror. What was found is kept (hub_kept.py) and taken from there the
       next time; a revision that is named (@main) is asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from linnet.data.reading.hub_files import FEW_ROWS, LARGE, READERS, HubFile, first_sentence, quiet_datasets
from linnet.data.reading.hub_kept import HubSet, keep, read_kept
from linnet.errors import LinnetError
from linnet.hub import no_telemetry, retried, why_not

BRANCH = "refs/convert/parquet"
TRAIN = ("train", "train_sft")
HELD_OUT = ("validation", "test", "test_sft")
MOVED = {"scientific_papers": "armanc/scientific_papers"}
# Where a script's data is found in plain files: (data set, config) -> (data set, config).
MIRRORS = {
    ("armanc/scientific_papers", "pubmed"): ("ccdv/pubmed-summarization", "section"),
    ("armanc/scientific_papers", "arxiv"): ("ccdv/arxiv-summarization", "section"),
}

_WORD = re.compile(r"[\w-][\w.-]*")
_EXPORTED = re.compile(r"(?P<config>[^/]+)/(?P<partial>partial-)?(?P<split>[^/]+)/[^/]+\.parquet")

Say = Callable[[str], None]


class _Place(NamedTuple):
    """A source, taken apart; "" is what it leaves out."""

    source: str
    name: str
    config: str
    revision: str


Splits = dict[str, list[str]]
"""Paths in the repository of each split."""


def find_hub_set(source: str, *, say: Say, max_rows: int | None = None) -> HubSet:
    """The data set that `source` names.

    Train is `train`, `train_sft` or the only split; held out is `validation`, `test` or `test_sft`.

    Args:
        say: is told what was taken.
        max_rows: data.max_rows; with it, files are streamed that are not small.

    Raises:
        LinnetError: no such data set, config or revision, no access, no network, or nothing that we read.
    """
    no_telemetry()
    place = _parse(source)
    kept = read_kept(place.source)
    found, note = kept, ""
    if kept is None or place.revision:
        try:
            found = _ask(place)
            keep(found)
        except _Unreachable as error:
            if kept is None:
                raise
            note = f" ({error.reason}: as it was known here)"
    assert found is not None
    say(found.took + note)
    return replace(
        found,
        files=_how(found.files, max_rows=max_rows),
        held_out_files=_how(found.held_out_files, max_rows=max_rows),
    )


def _how(found: tuple[HubFile, ...], *, max_rows: int | None) -> tuple[HubFile, ...]:
    """The files of a split, with `streamed` set."""
    large = sum(file.size for file in found) > LARGE
    return tuple(
        replace(file, streamed=large if max_rows is None else file.size > FEW_ROWS) for file in found
    )


def _parse(source: str) -> _Place:
    place, _, revision = source.removeprefix("hf:").partition("@")
    words = place.split("/")
    name, config = "/".join(words[:2]), "/".join(words[2:])
    if words[0] in MOVED:
        name, config = MOVED[words[0]], "/".join(words[1:])
    if not all(_WORD.fullmatch(word) for word in words) or len(words) > 3 or source.endswith("@"):
        raise LinnetError(
            f"{source} names no data set; the form is hf:owner/name, with /config and @revision where they are needed."
        )
    return _Place(source, name, config, revision)


# -- the hub -----------------------------------------------------------------------------------------------------------


class _Unreachable(LinnetError):
    """The hub did not answer; what is in the cache may do."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="linnet")


def _info(place: _Place, *, revision: str) -> Any:
    """What the hub says of a repository: its name now, its commit, the names of its files."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = retried(lambda: _api().dataset_info(place.name, revision=revision or None))
        if info.gated:  # What is in it may be known to all, but its files are not.
            _api().auth_check(info.id, repo_type="dataset")
        return info
    except Exception as error:  # Of the hub's client, of http and of sockets.
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        name = "" if place.name in place.source else f"{place.name} "
        message = f"{place.source}: {name}cannot be had; {why_not(error)}."
        if status < 500 and status != 429:
            raise LinnetError(message) from error
        raise _Unreachable(message, reason=why_not(error).split(";")[0]) from error


def _ask(place: _Place) -> HubSet:
    """Ask the hub, whatever is kept here."""
    if place.revision == BRANCH:
        return _from_branch(place, _info(place, revision=BRANCH), why="")
    info = _info(place, revision=place.revision)
    place = place._replace(name=info.id)
    if f"{info.id.split('/')[-1]}.py" not in {sibling.rfilename for sibling in info.siblings}:
        reason = "it has no files of a kind that is read here (Parquet, JSON, CSV, text)"
        if splits := _own_splits(place, info):
            return splits
    else:
        reason = "it is a loading script, which is never run"
    if place.revision:
        raise LinnetError(
            f"{place.source}: at this revision {reason}; leave out @{place.revision} to have the hub's Parquet branch."
        )
    return _instead(place, reason)


def _instead(place: _Place, reason: str) -> HubSet:
    """From the Parquet branch that the hub makes of a data set, or a mirror."""
    from huggingface_hub.errors import RevisionNotFoundError

    mirror = MIRRORS.get((place.name, place.config))
    configs: list[str] = []
    try:
        branch = _info(place, revision=BRANCH)
    except LinnetError as error:
        if not isinstance(error.__cause__, RevisionNotFoundError):
            raise
    else:
        configs = sorted(_exported(branch))
        if place.config in configs or (not place.config and configs):
            return _from_branch(place, branch, why=f"{reason}; ")
    if mirror:
        found = _ask(place._replace(name=mirror[0], config=mirror[1]))
        what = f"has no {place.config}" if configs else "is missing"
        head = f"{place.source}: {reason}, and its Parquet branch {what}; the mirror "
        return replace(found, took=head + found.took.split(": ", 1)[-1])
    known = sorted({*configs, *(config for name, config in MIRRORS if name == place.name)})
    if known:
        raise _unknown_config(place, known)
    raise LinnetError(
        f"{place.source}: {reason}, and the hub has no Parquet branch of it; download its data and name the file."
    )


def _unknown_config(place: _Place, configs: Iterable[str]) -> LinnetError:
    known = sorted(configs)
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    what = f"has no config {place.config}" if place.config else "has several configs and none is named"
    revision = f"@{place.revision}" if place.revision else ""
    return LinnetError(f"{place.source} {what}; there are {shown}: hf:{place.name}/{known[0]}{revision}")


# -- configs and splits ------------------------------------------------------------------------------------------------


def _own_splits(place: _Place, info: Any) -> HubSet | None:
    """From the repository's own files; None where it has none that we read."""
    datasets = quiet_datasets()
    try:
        builder = datasets.load_dataset_builder(info.id, place.config or None, revision=info.sha)
    except FileNotFoundError:  # No data files, or not those that the card names.
        return None
    except ValueError as error:  # It is about the config; a wrong card has this type, too.
        configs = datasets.get_dataset_config_names(info.id, revision=info.sha)
        if len(configs) > 1 or place.config not in ("", *configs):
            raise _unknown_config(place, configs) from error
        raise LinnetError(f"{place.source}: its card cannot be read ({first_sentence(error)}).") from error
    except Exception as error:  # Of the hub's client, of http and of sockets.
        raise LinnetError(f"{place.source} cannot be had; {why_not(error)}.") from error
    reader = _reader_of(builder)
    head = f"hf://datasets/{info.id}@{info.sha}/"
    urls = {str(split): list(found) for split, found in (builder.config.data_files or {}).items()}
    if reader not in READERS or not all(url.startswith(head) for found in urls.values() for url in found):
        return None
    splits = {split: [url.removeprefix(head) for url in found] for split, found in urls.items()}
    place = place._replace(config=builder.config.name)
    return _found(
        place, info, splits, reader=reader, options=_options(builder.config), partial=False, where=""
    )


def _reader_of(builder: Any) -> str:
    """The name of the packaged reader, as `parquet` in datasets.packaged_modules.parquet.parquet."""
    modules = (base.__module__.split(".") for base in type(builder).__mro__)
    return next((names[2] for names in modules if names[:2] == ["datasets", "packaged_modules"]), "")


def _options(config: Any) -> tuple[tuple[str, Any], ...]:
    """What the card sets for the reader, other than its defaults."""
    usual = vars(type(config)())
    common = {"name", "version", "data_dir", "data_files", "description"}
    return tuple(
        (key, value)
        for key, value in sorted(vars(config).items())
        if key not in common and value != usual.get(key) and isinstance(value, (str, int, list))
    )


def _exported(info: Any) -> dict[str, tuple[Splits, set[str]]]:
    """Config -> its splits, and those of them that are cut, by the names of the files on the Parquet branch."""
    configs: dict[str, tuple[Splits, set[str]]] = {}
    for path in sorted(sibling.rfilename for sibling in info.siblings):
        if part := _EXPORTED.fullmatch(path):
            splits, cut = configs.setdefault(part["config"], ({}, set()))
            splits.setdefault(part["split"], []).append(path)
            if part["partial"]:
                cut.add(part["split"])
    return configs


def _from_branch(place: _Place, info: Any, *, why: str) -> HubSet:
    configs = _exported(info)
    chosen = place.config or ("default" if "default" in configs else "")
    if not chosen and len(configs) == 1:
        (chosen,) = configs
    if chosen not in configs:
        raise _unknown_config(place, configs)
    splits, cut = configs[chosen]
    place = place._replace(config=chosen)
    partial = bool(cut & {_train_split(place, splits)})
    where = f"{why}from its Parquet branch, "
    return _found(place, info, splits, reader="parquet", options=(), partial=partial, where=where)


def _train_split(place: _Place, splits: Mapping[str, Any]) -> str:
    split = next((name for name in TRAIN if name in splits), "")
    if not split and len(splits) != 1:
        raise LinnetError(
            f"{place.source} has no split train, and it has several: {', '.join(sorted(splits))}."
        )
    return split or next(iter(splits))


def _found(
    place: _Place,
    info: Any,
    splits: Splits,
    *,
    reader: str,
    options: tuple[tuple[str, Any], ...],
    partial: bool,
    where: str,
) -> HubSet:
    """The set, with sizes and hashes of its files; `where` goes into the sentence about it."""
    split = _train_split(place, splits)
    held_out = next((name for name in HELD_OUT if name in splits and name != split), "")
    paths = [*splits[split], *splits.get(held_out, [])]
    try:
        entries = retried(
            lambda: _api().get_paths_info(info.id, paths, revision=info.sha, repo_type="dataset")
        )
    except Exception as error:  # Of the hub's client, of http and of sockets.
        raise LinnetError(f"{place.source} cannot be had; {why_not(error)}.") from error
    known = {
        entry.path: HubFile(
            *(info.id, info.sha, entry.path, entry.size),
            content=entry.lfs.sha256 if entry.lfs else entry.blob_id,
            reader=reader,
            options=options,
        )
        for entry in entries
    }
    train, own = ([known[path] for path in splits.get(name, [])] for name in (split, held_out))
    count = f"{len(train)} {'file' if len(train) == 1 else 'files'}"
    size = f"{count}, {sum(file.size for file in train) / 1e6:,.1f} MB"
    part = f"a PART of split {split} only, as the hub cuts it short" if partial else f"split {split}"
    took = (
        f"{place.source}: {where}{info.id} at {info.sha[:7]}, config {place.config}: {part} ({size}); "
        f"{f'held-out split {held_out}' if held_out else 'no held-out split of its own'}."
    )
    return HubSet(
        *(place.source, info.id, place.config, info.sha, split, held_out),
        files=tuple(train),
        held_out_files=tuple(own),
        took=took,
    )
