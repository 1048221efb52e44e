"""Who is written next: one thread that takes steps for all texts of all models.

What   Requests come in through `admit` and `submit`, what is written goes out through the queue of each request.
Why    A step for eight texts takes hardly longer than for one, so new texts join those that are being written. Two
       models that compute at the same time would fight for the cores, so their steps alternate.
How    Texts start in the order in which their prompts were ready, as many at once as `together`. Before each step
       those go whose client has gone. More than `queue` that wait are refused.
Threads: `admit`, `submit`, `leave` and `cut` come from other threads; all else happens in the scheduler's own. It
       reaches the event loop by `call_soon_threadsafe` alone, once a step.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from linnet.generate.sampling import Likely
from linnet.generate.writing import Piece, Writing
from linnet.serve.meters import Meters
from linnet.serve.refusals import Refusal, refusal_of
from linnet.serve.shelf import Held


@dataclass(frozen=True)
class Echo:
    """A prompt that is shown before the text. `top`: how likely its tokens were is asked for, too."""

    text: str
    ids: Sequence[int]
    unseen: int
    """Ids at the beginning that are not of the prompt itself."""
    top: int | None

    def score(self, held: Held) -> Piece:
        """The prompt as if it had been written."""
        if self.top is None:
            return Piece(self.text)
        likely = held.model.score(self.ids, top=self.top)
        first = [Likely(token, math.nan, []) for token in self.ids[:1]]  # Nothing came before it.
        return Piece(self.text, [*first, *likely][self.unseen :])


@dataclass(eq=False)
class Text:
    """One of the texts that a request asks for. Without `writing` only its prompt is shown."""

    job: Job
    number: int
    held: Held
    writing: Writing | None
    echo: Echo | None = None
    counted: int = 0
    began: float = 0.0


@dataclass(frozen=True)
class Laid:
    """The texts of a request are laid out: it will be answered."""

    prompt_tokens: int
    held: Held


@dataclass(frozen=True)
class Written:
    """What one of its texts has become; `finish_reason` is empty as long as it goes on."""

    number: int
    piece: Piece
    finish_reason: str
    tokens: int


class Gone(Exception):
    """The client has left."""


Event = Laid | Written | Exception


@dataclass(eq=False)
class Job:
    """A request: `count` texts, and what is known of them so far, as `events`."""

    count: int
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    texts: list[Text] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False
    cut: bool = False
    open: int = 0
    """Texts that are not done, as the scheduler counts them."""


class Scheduler:
    """Made on the event loop that its clients live on; `close` ends its thread."""

    def __init__(self, *, together: int, queue: int, meters: Meters) -> None:
        self.together, self.queue, self.meters = together, queue, meters
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._jobs: set[Job] = set()  # All that were admitted and are not done.
        self._line: deque[Text] = deque()
        self._running: list[Text] = []
        self._seconds = 1.0  # That a text takes, on average.
        self._news = False
        self._closed = False
        self._draining = False
        meters.watch(running=lambda: len(self._running), waiting=self.waiting)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def waiting(self) -> int:
        """Texts that were admitted and are not written yet."""
        with self._changed:
            return sum(job.open for job in self._jobs) - len(self._running)

    def admit(self, job: Job) -> None:
        """Let it in; or a Refusal that says when to come again."""
        with self._changed:
            if self._draining:
                raise Refusal(503, "The server is stopping.", code="stopping", headers={"retry-after": "10"})
            texts = sum(other.open for other in self._jobs)
            if texts - self.together >= self.queue:
                seconds = math.ceil(self._seconds * (texts + 1 - self.queue) / self.together)
                raise Refusal(
                    429,
                    f"{texts - self.together} texts wait already; come again later.",
                    code="queue_full",
                    headers={"retry-after": str(min(60, max(1, seconds)))},
                )
            job.open = job.count
            self._jobs.add(job)
            self.meters.admitted.inc()

    def submit(self, job: Job) -> None:
        """Its texts are laid out; they stand in line from now on."""
        with self._changed:
            if job in self._jobs:
                self._line.extend(job.texts)
                self._wake()

    def leave(self, job: Job) -> None:
        """Nobody waits for it any more."""
        with self._changed:
            if job.gone:
                return
            job.gone = True
            self._wake()
        job.events.put_nowait(Gone())

    def cut(self, job: Job) -> None:
        """Its time is over: what is written stays, what waits is refused."""
        with self._changed:
            job.cut = True
            self._wake()

    def drain(self) -> None:
        """Nobody is let in any more."""
        with self._changed:
            self._draining = True

    def cut_all(self) -> None:
        """All of them."""
        with self._changed:
            jobs = list(self._jobs)
        for job in jobs:
            self.cut(job)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._wake()
        self._thread.join()

    def _wake(self) -> None:
        self._news = True
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._running or self._line)
                self._news = False
                if self._closed:
                    return
            self._round()

    def _round(self) -> None:
        """A step of each model that has texts. A function, so that nothing holds a model in memory afterwards."""
        self._sweep()
        self._start()
        for held in dict.fromkeys(text.held for text in self._running):
            self._sweep()
            try:
                held.batch.step()
            except Exception as error:
                self._fail(held, error)
            else:
                self._post(
                    [event for text in list(self._running) if text.held is held for event in self._take(text)]
                )

    def _sweep(self) -> None:
        """Those go whose client has gone, or whose time is over."""
        with self._changed:
            ending = [job for job in self._jobs if job.gone or job.cut]
        for job in ending:
            events: list[tuple[Job, Event]] = []
            for text in [text for text in self._running if text.job is job]:
                assert text.writing is not None
                if not job.gone:
                    text.writing.end()
                    events += self._take(text)
                text.held.batch.drop(text.writing)
                self._forget(text)
            with self._changed:
                waiting = job.open > 0
                self._line = deque(text for text in self._line if text.job is not job)
                job.open = 0
                self._jobs.discard(job)
            if waiting and not job.gone:
                late = Refusal(503, "The time is over, and no text was begun.", code="timeout")
                events.append((job, late))
            self._post(events)

    def _start(self) -> None:
        while self._line and len(self._running) < self.together:
            with self._changed:
                text = self._line.popleft()
            text.began = time.monotonic()
            self.meters.waited.observe(text.began - text.job.arrived)
            try:
                if text.echo is not None or text.writing is None:
                    piece = text.echo.score(text.held) if text.echo else Piece()
                    end = "" if text.writing else "length"
                    self._post([(text.job, Written(text.number, piece, end, 0))])
                if text.writing is not None:
                    text.held.batch.add(text.writing)
                    self._running.append(text)
                else:
                    self._forget(text)
            except Exception as error:
                self._forget(text)
                self._post([(text.job, refusal_of(error))])

    def _take(self, text: Text) -> list[tuple[Job, Event]]:
        """What is new of a text."""
        writing = text.writing
        assert writing is not None
        piece, reason = writing.take(), writing.finish_reason
        new = len(writing.tokens) - text.counted
        if new:
            self.meters.written.inc(new)
            if text.counted == 0:
                self.meters.first.observe(time.monotonic() - text.job.arrived)
            text.counted += new
        if reason:
            self._seconds += (time.monotonic() - text.began - self._seconds) / 16
            self._forget(text)
        if piece.text or piece.likely or reason:
            return [(text.job, Written(text.number, piece, reason, text.counted))]
        return []

    def _forget(self, text: Text) -> None:
        """It is not written any further."""
        if text in self._running:
            self._running.remove(text)
        with self._changed:
            if text.job.open:
                text.job.open -= 1
                if text.job.open == 0:
                    self._jobs.discard(text.job)

    def _fail(self, held: Held, error: Exception) -> None:
        """All texts of a model end with an error; others go on."""
        refusal = refusal_of(error)
        failed = [text for text in self._running if text.held is held]
        for text in failed:
            self._forget(text)
        held.begin_anew()
        self._post([(job, refusal) for job in dict.fromkeys(text.job for text in failed)])

    def _post(self, events: Sequence[tuple[Job, Event]]) -> None:
        if events:
            self._loop.call_soon_threadsafe(_deliver, events)


def _deliver(events: Sequence[tuple[Job, Event]]) -> None:
    for job, event in events:
        job.events.put_nowait(event)
