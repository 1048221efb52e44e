"""`linnet export RUN --to hub owner/name`: the model folder and its card, as a repository on the hub.

What   `export_to_hub(model, repository)` makes the repository where there is none, and sends it the files of the model.
Why    With one commit the repository has the old model or the new one, never config.json of one and weights of the
       other. huggingface_hub's `upload_folder` may make several commits, and `upload_large_folder` leaves a .cache in
       the folder, so it is `create_commit`: the large files go first, each by its hash, then a commit names them all.
How    After a broken upload the same command goes on: the hub is asked by hash, and gets no large file that it has.
       Sent are the files of a model alone, by name, and nothing of a subfolder: no checkpoint, no data.
       The token is huggingface_hub's own (HF_TOKEN, `hf auth login`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnet import files
from linnet.errors import LinnetError, UsageError
from linnet.hub import causes, no_telemetry, why_not
from linnet.model.resolve import resolve_model
from linnet.track.card import BESIDE, card_of_repository, unseal, write_card
from linnet.track.card.lineage import CARD, HUB_NAME
from linnet.track.progress import printable

MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", CARD, "LICENSE*", "*.png"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What was sent.

    Attributes:
        commit: the repository's commit with all files; where nothing is new, the one it had.
        bytes: of all files, whether or not they were there already.
        command: the same by hand.
    """

    repository: str
    url: str
    commit: str
    files: list[str]
    bytes: int
    command: str


def export_to_hub(model: str, repository: str, *, private: bool = False, say: Say = print) -> Report:
    """Send a model to the hub repository `owner/name`, which is made where there is none.

    Args:
        model: a run or a model folder on this machine.
        private: a repository that is made is seen by its owner alone; one that exists stays as it is.
        say: takes a line for the user.

    Raises:
        UsageError: `repository` is no such name.
        LinnetError: there is no model, no token, no right to write, no network; in one sentence.
        RunLockedError: the run is being trained, and its model could change on the way.
    """
    no_telemetry()
    _check_name(repository)
    folder = _folder_of(model)
    root = folder.parent if folder.name == "model" and (folder.parent / "recipe.toml").is_file() else None
    with files.Lock(root / "lock") if root else contextlib.nullcontext():
        if root is not None:
            files.repair_folder(folder)
            write_card(root, folder)
        _say_of_card(folder, root, say)
        names, others = _files_of(folder)
        contents: dict[str, Path | bytes] = {name: folder / name for name in names}
        if card := card_of_repository(folder, repository):
            contents[CARD] = card
        size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in contents.values())
        command = _command(folder, repository, others=others, private=private)
        if others:
            say(f"Not sent, since a model does not need it: {', '.join(others)}.")
        say(f"{folder}: {len(names)} files, {size / 1e6:,.1f} MB, go to {repository}.")
        with _in_words(repository):
            url, commit, foreign = _send(contents, repository=repository, private=private)
        if card:  # Only now: before, its lines would name a repository that may never be.
            files.write_file(folder / CARD, [card])
    if foreign:
        say(
            f"{repository} also holds {', '.join(foreign)}; delete on its page what belongs to an older model, since "
            "other programs may read it."
        )
    return Report(repository, url, commit, names, size, command)


def _send(
    contents: Mapping[str, Path | bytes], *, repository: str, private: bool
) -> tuple[str, str, list[str]]:
    """Make the repository and one commit; returns its URL, the commit, and the files that are not of this model."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if get_token() is None:
        raise LinnetError(
            "There is no token for the hub; run `hf auth login`, or set HF_TOKEN to a token with write access."
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="linnet")
    # None and not False: then the owner's own default holds, and a repository that exists is not asked about it.
    url = api.create_repo(repository, private=private or None, exist_ok=True)
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    done = api.create_commit(repository, operations, commit_message="Model and card by linnet export")
    foreign = sorted({*api.list_repo_files(repository)} - {*contents, ".gitattributes"})
    return str(url), str(done.oid), foreign


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        good = bool(HUB_NAME.fullmatch(repository))
    except HFValidationError:
        good = False
    if not good:
        raise UsageError(
            f"{repository!r} is no name for a repository on the hub; it is owner/name, of letters, digits, '-', '_' "
            "and '.'."
        )


def _folder_of(model: str) -> Path:
    """The model folder on this machine."""
    path = files.expand_home(model)
    if not path.exists():
        raise LinnetError(f"There is no folder {model}; name a run, or a model folder of this machine.")
    return resolve_model(path)


def _files_of(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the files that are sent, and of what else lies there."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    names = [path.name for path in paths if path.is_file() and _is_of_model(path.name)]
    if not any(name.endswith(".safetensors") for name in names):
        raise LinnetError(
            f"{folder} has no weights that can be sent: there is no .safetensors file in it; name a whole model."
        )
    return names, [path.name + "/" * path.is_dir() for path in paths if path.name not in names]


def _is_of_model(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def _command(folder: Path, repository: str, *, others: Sequence[str], private: bool) -> str:
    """The same with huggingface_hub's own command."""
    excluded = [word for name in others for word in ("--exclude", name + "*" * name.endswith("/"))]
    words = ["hf", "upload", repository, str(folder), ".", *excluded, *(["--private"] if private else [])]
    return shlex.join(words)


def _say_of_card(folder: Path, root: Path | None, say: Say) -> None:
    """Say where the card is not the one that Linnet writes."""
    if not (folder / CARD).is_file():
        say(f"{folder} has no card ({CARD}); the repository will say nothing about the model.")
    elif unseal(folder / CARD) is None and root is not None:
        say(f"{folder / CARD} was changed by hand and is sent as it is; the measured one is {root / BESIDE}.")


@contextlib.contextmanager
def _in_words(repository: str) -> Iterator[None]:
    """Turn what the hub, the network and their client raise into one sentence."""
    try:
        yield
    except LinnetError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # A file of this machine: `linnet.__main__` has words for that.
        raise LinnetError(f"{repository} did not get the model: {_reason(error, repository)}.") from error


def _reason(error: Exception, repository: str) -> str:
    """Why the hub did not take it, and what to do."""
    chain = list(causes(error))
    if isinstance(error, ValueError) and CARD in str(error):
        return f"it refuses the metadata at the head of {CARD} ({_one_line(error)}); mend it there"
    for one in chain:
        response: Any = getattr(one, "response", None)
        status = getattr(response, "status_code", None)
        if status == 401:
            return "the hub does not know your token; run `hf auth login`, or set HF_TOKEN"
        if status == 403:
            owner = repository.partition("/")[0]
            return f"your token may not write there; take one with write access to {owner}, or another owner"
        if status == 429 or (status and status >= 500):
            return f"the hub is busy or in trouble (status {status}); the same command goes on later"
        if status:
            said = getattr(one, "server_message", None) or "no reason given"
            return f"the hub answers with status {status} ({_one_line(said)})"
    kinds = {type(one).__name__ for one in chain}
    if kinds & {"OfflineModeIsEnabled", "ConnectError", "ConnectTimeout"}:
        return why_not(error)
    first = chain[-1]  # What the others came of.
    reason = f"{type(first).__name__}: {_one_line(first).rstrip('.')}"
    if (
        any(isinstance(one, TimeoutError | ConnectionError) for one in chain)
        or "RemoteProtocolError" in kinds
    ):
        again = "the same command goes on, and sends no large file again that has arrived"
        return f"the connection broke ({reason}); {again}"
    return f"its client gave up ({reason}); try the same command again"


def _one_line(text: object) -> str:
    return " ".join(printable(str(text)).split())[:200]
