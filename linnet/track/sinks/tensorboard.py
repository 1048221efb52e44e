"""TensorBoard: event files in RUN/tensorboard.

What   `TensorBoard(folder, ...)` writes curves, samples as text, the recipe as text and as hyperparameters.
Why    `tensorboard --logdir runs` is what many have open beside their training.
How    With tensorboard's own writer; torch's, around the same one, would import torch a second time. After a kill the
       files may hold steps that the training does again. A session-start event says so to every reader of them: what
       was there from this step on counts no more (this is what torch calls purge_step).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from linnet.recipe import flatten
from linnet.track.sinks.steps import Step

QUEUE = 1000  # Events on their way to the writer's thread.
FLUSH_S = 5  # Seconds after which an event is surely in the file.


class TensorBoard:
    """A sink; see `linnet.track.sinks.__main__.Sink`.

    Args:
        folder: for the event files; it exists.
        facts: of the run, from `read_facts`.
        step: where the training goes on.
    """

    def __init__(self, folder: Path, *, facts: Mapping[str, Any], step: int) -> None:
        files = sorted(folder.glob("events.out.tfevents.*"))
        self.first = min(step, _newest_step(files))  # the newest is done again: it may be there in part
        self._started = _seconds(facts["started"].get("time"))
        # Readers take the files by name, and the second of the start is what begins a name.
        while files and int(time.time()) <= int(files[-1].name.split(".")[3]):
            time.sleep(0.1)
        self._writer = EventFileWriter(str(folder), max_queue_size=QUEUE, flush_secs=FLUSH_S)
        if files:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=self.first, session_log=start))
        if self.first == 0:
            self._show(facts)

    def post(self, step: Step) -> None:
        """Add a step; its moment is that of the first start plus the training time, so that a curve against time has
        no gaps where the run stood still."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in step.values.items()]
        wall_time = self._started + step.time_s
        self._writer.add_event(Event(wall_time=wall_time, step=step.number, summary=Summary(value=values)))
        if step.samples:
            text = "\n\n".join(_as_code(f"{prompt} -> {text}") for prompt, text in step.samples)
            summary = text_pb("samples", text)
            self._writer.add_event(Event(wall_time=wall_time, step=step.number, summary=summary))

    def finish(self) -> None:
        """Return when all is in the file."""
        self._writer.flush()
        self._writer.close()

    def _show(self, facts: Mapping[str, Any]) -> None:
        """The recipe as a text and on the tab of hyperparameters, once at the beginning."""
        settings = {key: _plain(value) for key, value in flatten(facts["recipe"]).items()}
        settings |= {f"chosen.{key}": _plain(value) for key, value in facts["chosen"].items()}
        recipe = text_pb("recipe", _as_code(tomli_w.dumps(facts["recipe"])))
        for summary in (recipe, hparams_pb(settings, start_time_secs=self._started)):
            self._writer.add_event(Event(wall_time=self._started, step=0, summary=summary))


def _newest_step(files: list[Path]) -> int:
    """The newest step that a reader of these event files would show; 0 for none."""
    newest = 0
    for file in files:
        for event in EventFileLoader(str(file)).Load():
            if event.HasField("session_log"):
                newest = min(newest, event.step - 1)
            elif event.HasField("summary"):
                newest = max(newest, event.step)
    return newest


def _seconds(moment: str | None) -> float:
    """A moment of environment.json in seconds since 1970; now, if there is none."""
    try:
        return datetime.strptime(moment or "", "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return time.time()


def _plain(value: Any) -> bool | int | float | str:
    """The value as the tab of hyperparameters takes it."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def _as_code(text: str) -> str:
    """Markdown that shows the text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
