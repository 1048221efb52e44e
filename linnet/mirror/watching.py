"""The training's side of the mirror: what is offered, what is said, how long anybody waits.

Why    A mirror may be slow, full, or away at any time, and the training must neither stop nor wait for it.
How    `offer` holds a checkpoint, some 20 hard links, and returns; `look`, at each logged step, reads what the copying
       process has answered (2 microseconds). One copy is under way and at most one waits, the newest. Trouble is said
       once, and so is its end. Only `close` waits, and only so long.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from linnet.errors import LinnetError
from linnet.mirror import held
from linnet.mirror.process import Copier, Message
from linnet.training.checkpoint import saved_steps

SILENT_S = 60.0  # Without a sign of life for so long: it is said, and nobody waits for it at the end.
STUCK_S = 600.0  # So long: the process is killed, and the next checkpoint gets a new one.
END_S = 600.0  # The longest wait at the end of a training, ...
SIGNAL_S = 20.0  # ... and after Ctrl-C or SIGTERM: clusters kill 30 s after their SIGTERM.
SAID_AFTER_S = 1.0  # A wait that is shorter needs no words.

Say = Callable[[str], None]


@dataclass
class _Copy:
    """A checkpoint that is held to be copied."""

    step: int
    held: Path
    bytes: int
    done: int = 0


class Mirror:
    """Copies checkpoints of the run `root` to `place`/(name of the run), beside the training."""

    def __init__(self, root: Path, place: Path, *, say: Say) -> None:
        self.say = say
        self._root, self._place = root.absolute(), place.absolute()
        self.folder = _folder_of(root, place)
        self._copier: Copier | None = None
        self._device: int | None = None
        self._running: _Copy | None = None
        self._waiting: _Copy | None = None
        self._offered: int | None = None
        self._copied: int | None = None
        self._heard = time.monotonic()
        self._trouble = False
        self._closing = False
        self._count = 0

    def offer(self, step: int) -> None:
        """The checkpoint of `step` was saved: copy it when the one before is done. One that still waits is skipped."""
        self.look()
        self._offered = step
        self._count += 1
        place = self._root / held.NAME / str(self._count)
        try:
            held.hold(self._root, place, step=step)
        except OSError as error:
            held.release(place)
            self._has_trouble(f"has no copy of step {step:,} ({error.strerror}: {place})")
            return
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        if self._waiting is not None:
            held.release(self._waiting.held)
        self._waiting = _Copy(step, place, size)
        self._start_next()

    def look(self) -> None:
        """Hear what was answered; costs nothing where nothing was."""
        while (copier := self._copier) is not None and not copier.answers.empty():
            self._hear(copier.answers.get())
        if copier is not None and self._running is not None:
            silent = time.monotonic() - self._heard
            if silent > SILENT_S:
                self._has_trouble(f"has not answered for {SILENT_S:.0f} s, while {self._doing()}")
            if silent > STUCK_S:
                copier.end()
                self._heard = time.monotonic()

    def close(self, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Copy what was offered last, as the files are now, wait for it within bounds, and end the process.

        Args:
            stopped: whether Ctrl-C or SIGTERM has come; the wait is then short, and ends when one comes.
        """
        self._closing = True
        try:
            if self._offered is not None:
                self.offer(self._offered)
                self._wait(stopped)
            if self._copied != self._offered:
                there = "no checkpoint" if self._copied is None else f"step {self._copied:,}"
                self.say(
                    f"The mirror {self.folder} got {there} of this training, not its last one, step {self._offered:,}: "
                    "it is safe here, and the same command copies it."
                )
        finally:
            if self._copier is not None:
                self._copier.end()
                self._copier = None
            held.release(self._root / held.NAME)

    def _wait(self, stopped: Callable[[], bool]) -> None:
        """Until everything is copied, or failed, or the time is over."""
        was_stopped, started = stopped(), time.monotonic()
        bound = SIGNAL_S if was_stopped else END_S
        said = False
        while self._running is not None:
            assert self._copier is not None
            with contextlib.suppress(queue.Empty):
                self._hear(self._copier.answers.get(timeout=0.1))
            now = time.monotonic()
            if now - started > bound or now - self._heard > SILENT_S or (stopped() and not was_stopped):
                return
            if self._running is not None and not said and now - started > SAID_AFTER_S:
                ends = "" if was_stopped else "; Ctrl-C ends the wait"
                self.say(f"Waiting for the mirror, at most {bound:.0f} s, while {self._doing()}{ends}.")
                said = True

    def _start_next(self) -> None:
        if self._running is not None or self._waiting is None:
            return
        if self._copier is None:
            self._copier = Copier()
        self._running, self._waiting = self._waiting, None
        self._heard = time.monotonic()
        self._copier.send(
            {
                "do": "copy",
                "held": str(self._running.held),
                "step": self._running.step,
                "root": str(self._root),
                "place": str(self._place),
                "name": self.folder.name,
                "device": self._device,
            }
        )

    def _hear(self, answer: Message) -> None:
        self._heard = time.monotonic()
        if self._running is not None and "bytes" in answer:
            self._running.done += answer["bytes"]
            return
        if "ended" in answer:
            self._copier = None
        if self._running is None:
            return
        step = self._running.step
        held.release(self._running.held)
        self._running = None
        if "done" in answer:
            self._copied, self._device = step, answer["device"]
            if "no_report" in answer:
                self._has_trouble(f"has step {step:,} without its report.html ({answer['no_report']})")
            elif self._trouble:
                self.say(f"The mirror {self.folder} is there again: it has step {step:,}.")
            self._trouble = "no_report" in answer
        elif "refused" in answer:
            self._has_trouble(f"has no copy of step {step:,}: {answer['refused']}")
        else:
            self._has_trouble(f"has no copy of step {step:,} ({answer['failed']})")
        self._start_next()

    def _has_trouble(self, what: str) -> None:
        if not self._trouble:
            goes_on = "" if self._closing else " The training goes on, and each checkpoint tries again."
            self.say(f"The mirror {self.folder} {what.rstrip('.')}.{goes_on}")
        self._trouble = True

    def _doing(self) -> str:
        assert self._running is not None
        copy = self._running
        return f"step {copy.step:,} is copied to {self.folder} ({copy.done / 1e6:,.1f} of {copy.bytes / 1e6:,.1f} MB)"


def complete(root: Path, place: Path, *, step: int, say: Say) -> None:
    """Bring the mirror of a finished run up to its last checkpoint, that of `step`; Ctrl-C ends it."""
    mirror = Mirror(root, place, say=say)
    mirror.offer(step)
    mirror.close()


def restore(root: Path, place: Path, *, recipe: str, say: Say) -> None:
    """Bring the run back from `place` where its newest good checkpoint is further than the newest good one here.

    Args:
        recipe: the name of the recipe that is to be trained.

    Raises:
        LinnetError: the mirror holds another run or recipe, or one that went on in both places; or it cannot be read
            and there is nothing here to go on from.
    """
    folder, copier = _folder_of(root, place), Copier()
    try:
        copier.send(
            {
                "do": "fetch",
                "root": str(root.absolute()),
                "place": str(place.absolute()),
                "name": folder.name,
                "recipe": recipe,
            }
        )
        for answer in _answers(copier):
            if "say" in answer:
                say(answer["say"])
            elif "refused" in answer:
                raise LinnetError(answer["refused"])
            elif "failed" in answer:
                if not saved_steps(root / "checkpoints"):
                    raise LinnetError(
                        f"The mirror {folder} cannot be read ({answer['failed']}): mount it, or leave --mirror out to "
                        "begin without it."
                    )
                say(f"The mirror {folder} cannot be read ({answer['failed']}): going on with what is here.")
    finally:
        copier.end()


def _answers(copier: Copier) -> Iterator[Message]:
    """What is answered, up to the end of the job or until nothing has come for `SILENT_S`."""
    while True:
        try:
            answer = copier.answers.get(timeout=SILENT_S)
        except queue.Empty:
            answer = {"failed": f"no answer for {SILENT_S:.0f} s"}
        yield answer
        if not {"say", "bytes"} & set(answer):
            return


def _folder_of(root: Path, place: Path) -> Path:
    """Where the run lies at the mirror.

    Raises:
        LinnetError: that is the run itself, or inside of it.
    """
    home = root.resolve()
    folder = place / home.name
    if home == folder.resolve() or home in folder.resolve().parents:
        raise LinnetError(
            f"--mirror {place} would put the copy of {root} into the run itself: choose another folder."
        )
    return folder
