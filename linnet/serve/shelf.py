"""The models of a server, each loaded when somebody asks for it and given back when nobody does.

Why: a server that is left on should cost nothing while nobody asks, however many models it has.
How: a `Place` is one model with a thread of its own, in which it is loaded and prompts are laid out, one after the
other.
What is loaded is `Held`. Who uses a place counts in `users`, on the event loop's thread only; a place without users is
given back after a while, and glibc is told to return the memory to the system.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from linnet.errors import UsageError
from linnet.generate.batch import Batch
from linnet.generate.engine import Model
from linnet.generate.kernels import kernels
from linnet.model.chat_template import read_template
from linnet.model.pretrained import read_config
from linnet.model.resolve import resolve_model
from linnet.serve.refusals import Refusal

Load = Callable[[Path], Model]


@dataclass(eq=False)
class Held:
    """A model that is in memory, and the texts before it."""

    model: Model
    batch: Batch
    fingerprint: str
    """Equal fingerprints and seeds give equal texts."""

    def begin_anew(self) -> None:
        """Without texts, after one of them has failed."""
        self.batch = Batch(self.batch.decoder, prompts=self.batch.prompts)


class Place:
    """One model of the server; what can be known of it without its weights is read at once."""

    def __init__(self, name: str, folder: Path, *, load: Load, precision: str) -> None:
        self.name = name
        self.folder = folder
        self.precision = precision
        self.template, _ = read_template(folder)
        self.n_positions = read_config(folder).n_positions
        self.created = int((folder / "config.json").stat().st_mtime)
        self.held: Held | None = None
        self.users = 0
        self.last_used = time.monotonic()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._load = load

    @contextmanager
    def used(self) -> Iterator[None]:
        """As long as somebody uses it, it stays in memory."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.last_used = time.monotonic()

    def hold(self) -> Held:
        """The model, loaded if it is not. In the thread of the place."""
        if self.held is None:
            model = self._load(self.folder)
            assert model.decoder is not None
            batch = Batch(model.decoder, prompts=model.prompts)
            self.held = Held(model, batch, self._fingerprint())
        return self.held

    def give_back(self) -> None:
        """Forget the model. In the thread of the place; who came in the meantime loads it again."""
        self.held = None
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fingerprint(self) -> str:
        """Of the weights and of all else that a text depends on."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        ways = f"{self.precision} {torch.__version__} {torch.cpu.get_capabilities()} {kernels() is not None}"
        digest.update(ways.encode())
        return f"fp_{digest.hexdigest()[:16]}"

    def entry(self) -> dict[str, Any]:
        """As /v1/models shows it; what is under `linnet` is for our own page."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "linnet",
            "linnet": {
                "chat": self.template is not None,
                "roles": list(self.template.headers) if self.template else [],
                "n_positions": self.n_positions,
                "loaded": self.held is not None,
            },
        }


class Shelf:
    """All of them, by name."""

    def __init__(self, models: Sequence[str], *, load: Load, precision: str) -> None:
        """LinnetError where one is no model; UsageError where two have the same name."""
        self.places: dict[str, Place] = {}
        for given in models:
            folder = resolve_model(given)
            name = name_of(given)
            if name in self.places:
                raise UsageError(
                    f"{given} and {self.places[name].folder} are both called {name}; give one folder another name."
                )
            self.places[name] = Place(name, folder, load=load, precision=precision)

    def find(self, name: str) -> Place:
        """The model of that name, or a Refusal that names those that there are."""
        if name not in self.places:
            known = ", ".join(self.places)
            raise Refusal(
                404,
                f"There is no model of this name here; there is: {known}.",
                param="model",
                code="model_not_found",
            )
        return self.places[name]

    async def give_back_idle(self, seconds: float) -> None:
        """For ever: give back what nobody has used for so long."""
        while True:
            await asyncio.sleep(min(30.0, seconds / 4))
            for place in self.places.values():
                idle = place.users == 0 and time.monotonic() - place.last_used >= seconds
                if place.held is not None and idle:
                    await asyncio.get_running_loop().run_in_executor(place.thread, place.give_back)


def name_of(given: str) -> str:
    """runs/math -> math, runs/math/model -> math, owner/name -> name."""
    path = Path(given).expanduser()
    parts = (path.resolve() if path.is_dir() else path).parts
    named = parts[:-1] if len(parts) > 1 and parts[-1] == "model" else parts
    return named[-1]
