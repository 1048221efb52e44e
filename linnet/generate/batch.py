"""Texts that are written at the same time, each exactly as if it were alone.

What   `Batch.step()` reads a piece of a prompt, or several that are short, and writes one new token of each text whose
       prompt is read. Texts come and go between steps (continuous batching).
Why    A pass for eight texts takes hardly longer than for one: the weights are read once.
How    A text has a row of ids, of which a `Memory` holds what the network has read. Of a new text all but the last
       id is read, in pieces; the last one is decoded with those of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from linnet.generate.decoder import CHUNK, MOST_READ, Decoder, Memory
from linnet.generate.prompt_cache import PromptCache
from linnet.generate.rows import Row

# A shorter prompt takes hardly less time than one of so many ids, since all weights are read for it, too.
SHORTEST_READ = CHUNK // 2


class Text(Protocol):
    """What a batch writes; `linnet.generate.writing.Writing` is one."""

    @property
    def row(self) -> Row:
        """The ids that the network sees."""

    @property
    def room(self) -> int:
        """Most ids that the row can ever hold."""

    def draw(self, logits: Tensor) -> int | None:
        """The next token, of scores [V]; None where the text has ended."""
        ...


@dataclass
class _Reader:
    text: Text
    memory: Memory
    prompts: PromptCache | None
    """None once the row has made room: nobody else reads what it holds then, and keeping it would push out prompts."""

    @property
    def unread(self) -> int:
        """Ids that must be read before the last one can be decoded."""
        return len(self.text.row.ids) - 1 - self.memory.length

    @property
    def cost(self) -> int:
        """Ids that its next piece takes the time of."""
        unread = self.unread
        if self.prompts is not None and self.memory.length == 0:
            unread -= self.prompts.known(self.text.row.ids[:-1])
        return max(SHORTEST_READ, min(unread, MOST_READ)) if unread else 0


class Batch:
    """Some texts before one network.

    `prompts`: keeps what was read for those that come later. Without texts it holds no memory but that.
    """

    def __init__(self, decoder: Decoder, *, prompts: PromptCache | None = None) -> None:
        self.decoder = decoder
        self.prompts = prompts
        self._readers: list[_Reader] = []

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, text: Text) -> None:
        """From the next step on it is written, too."""
        self._readers.append(_Reader(text, self.decoder.memory(room=text.room), self.prompts))

    def drop(self, text: Text) -> None:
        """It is not written any further; nothing happens where it has ended."""
        self._readers = [reader for reader in self._readers if reader.text is not text]

    @torch.inference_mode()
    def step(self) -> None:
        """Read a piece of what is not read, then one new token of each text that is. Who has ended is dropped."""
        room = MOST_READ
        for reader in self._readers:
            if reader.unread > 0 and (cost := reader.cost) <= room:
                self._read(reader)
                room -= cost
        ready = [reader for reader in self._readers if reader.unread == 0]
        if not ready:
            return
        scores = self.decoder.decode(
            [reader.text.row.ids[-1] for reader in ready], [reader.memory for reader in ready]
        )
        for reader, logits in zip(ready, scores, strict=True):
            token = reader.text.draw(logits)
            if token is None:
                self.drop(reader.text)
            elif reader.text.row.append(token):  # The row made room: all of it is read again.
                reader.memory.length, reader.prompts = 0, None

    def _read(self, reader: _Reader) -> None:
        """A piece of its prompt, unless all of it was read before, for another text."""
        ids, prompts = reader.text.row.ids[:-1], reader.prompts
        if prompts is not None and reader.memory.length == 0:
            # Not sooner: of texts that come together the first one reads.
            prompts.fill(reader.memory, ids)
            if reader.unread == 0:
                return
        start = reader.memory.length
        self.decoder.read(ids[start : start + MOST_READ], reader.memory)
        if prompts is not None:
            prompts.keep(reader.memory, ids[: reader.memory.length])
