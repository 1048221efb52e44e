"""Weights & Biases and trackio, which speaks the same language: one adapter for both.

What   `Wandb("wandb" | "trackio", ...)` logs curves and samples under the step's number, the recipe as config.
Why    Both take a step once and only upwards: `log(values, step=n)`. What a run posted before a kill, it must not post
       again, and what it did not, it must.
How    The run has one id for ever. Where posted rows can be asked for (W&B's server, trackio's database) the sink goes
       on after the last of them. A W&B folder on this disk cannot be gone on with, and of two folders with one id
       the later upload replaces the earlier. So each offline start writes the whole run anew and removes the old one.

Nothing leaves the machine but to W&B, and only with an account: see `_choose_mode`. Both write into the run folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import netrc
import os
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from linnet import files
from linnet.errors import LinnetError
from linnet.track.places import without_places
from linnet.track.sinks.steps import Step
from linnet.track.sinks.wandb_file import steps_in

PROJECT = "linnet"
REACH_S = 5.0  # Most seconds to find out whether the server of W&B answers.
INIT_S = 30  # Most seconds that wandb takes to make a run there before this goes on offline.

# What neither sends of itself: code, git, the machine, what is printed, packages, reports of its own errors.
QUIET = {
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_INIT_TIMEOUT": str(INIT_S),
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
}


class Wandb:
    """A sink; see `linnet.track.sinks.__main__.Sink`.

    Args:
        name: `wandb` or `trackio`.
        root: the run folder.
        folder: RUN/NAME; it exists.
        facts: of the run, from `read_facts`.
        say: takes a sentence for the user.
    """

    def __init__(
        self, name: str, root: Path, *, folder: Path, facts: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._name = name
        self._posted, self._newest = 0, -1
        os.environ |= _environment(name, folder)
        self._module: Any = importlib.import_module(name)
        named: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": os.environ.get("WANDB_NAME", root.absolute().name),
        }
        named["config"] = {**without_places(facts["recipe"]), "chosen": facts["chosen"]}
        if name == "trackio":
            self._project, self._run_name = named["project"], named["name"]
            self._run = self._module.init(
                **named, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False
            )
            self.first = self._kept_by_trackio() + 1
        else:
            self._run = _start_wandb(self._module, root, run_id=_run_id(folder, facts), named=named, say=say)
            self.first = self._run.step

    def post(self, step: Step) -> None:
        """Log a step once."""
        values: dict[str, Any] = dict(step.values)
        if step.samples:
            values["samples"] = self._module.Table(
                columns=["prompt", "text"], data=[list(sample) for sample in step.samples]
            )
        self._module.log(values, step=step.number)
        self._posted, self._newest = self._posted + 1, step.number

    def finish(self) -> None:
        """Return when all has arrived. Neither says so when it cannot write (a full disk), so their files are read."""
        self._module.finish()
        if self._name == "trackio":
            if self._kept_by_trackio() < self._newest:
                raise LinnetError(f"trackio kept the steps up to {self._kept_by_trackio()} of {self._newest}")
        elif self._run.settings.mode == "offline":
            self._module.teardown()  # returns when its process has ended, and the last row is in the file
            steps = steps_in(Path(self._run.settings.sync_file))
            if steps is not None and len(steps) < self._posted:
                raise LinnetError(f"wandb kept {len(steps)} of {self._posted} steps")

    def _kept_by_trackio(self) -> int:
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        newest = storage.get_max_step_for_run(self._project, self._run_name)
        return -1 if newest is None else int(newest)


def _environment(name: str, folder: Path) -> dict[str, str]:
    """Variables that keep the sink inside the run folder, quiet and, for trackio, on this machine."""
    if name == "trackio":
        for key in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL"):
            os.environ.pop(key, None)
        # Its other way of storing, which it takes on network drives, cannot be asked what it has.
        return {"TRACKIO_DIR": str(folder.absolute()), "TRACKIO_STORAGE_MODE": "sqlite"}
    kept = {
        f"WANDB_{kind}_DIR": str(folder.absolute() / kind.lower()) for kind in ("CACHE", "DATA", "ARTIFACT")
    }
    return QUIET | kept


def _run_id(folder: Path, facts: Mapping[str, Any]) -> str:
    """The run's id at W&B, the same for ever: kept in the folder, and where that was lost, made of the first start."""
    path = folder / "id"
    with contextlib.suppress(OSError):
        if kept := path.read_text().strip():
            return kept
    made = hashlib.sha256(json.dumps(facts["started"], sort_keys=True).encode()).hexdigest()[:12]
    files.write_file(path, [made.encode()])
    return made


def _start_wandb(
    wandb: Any, root: Path, *, run_id: str, named: Mapping[str, Any], say: Callable[[str], None]
) -> Any:
    """The run at W&B, or offline in the run folder."""
    settings = wandb.setup().settings
    mode, why = _choose_mode(settings)
    if mode == "online":
        try:
            return wandb.init(**named, id=run_id, dir=str(root.absolute()), mode=mode, resume="allow")
        except Exception as error:  # wandb has a dozen kinds of these, and none may cost the rows
            wandb.teardown()  # its process still has the run under this id
            why = f"its server did not take the run ({str(error).splitlines()[0] if str(error) else 'no answer'})"
    for old in (root / "wandb").glob(f"offline-run-*-{run_id}"):
        shutil.rmtree(old, ignore_errors=True)
    run = wandb.init(
        **named, id=run_id, dir=str(root.absolute()), mode="disabled" if mode == "disabled" else "offline"
    )
    if mode == "disabled":
        say(f"nothing is kept, because {why}.")
    else:
        command = shlex.join(["wandb", "sync", str(root / "wandb" / Path(run.dir).parent.name)])
        say(f"offline, because {why}; `{command}` uploads the run after the training.")
    return run


def _choose_mode(settings: Any) -> tuple[str, str]:
    """(`online`, `offline` or `disabled`, why): online where there is an account and its server answers."""
    if settings.mode in ("offline", "dryrun"):
        return "offline", "WANDB_MODE or `wandb offline` says so"
    if settings.mode == "disabled":
        return "disabled", "WANDB_MODE says so"
    if not (settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _has_login(settings.base_url)):
        return "offline", "no account is known here (`wandb login` makes one known)"
    try:
        urllib.request.urlopen(settings.base_url, timeout=REACH_S).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        return "offline", f"{settings.base_url} does not answer ({getattr(error, 'reason', error)})"
    return "online", ""


def _has_login(url: str) -> bool:
    """Whether `wandb login` has left a key for this server in the netrc file."""
    places = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    for place in filter(None, places):
        with contextlib.suppress(OSError, netrc.NetrcParseError, RuntimeError):
            known = netrc.netrc(Path(place).expanduser()).hosts
            return bool({urlsplit(url).netloc, "api.wandb.ai"} & known.keys())
    return False
