"""What was read before need not be read again: keys and values of the beginnings of prompts.

Why: a conversation is sent whole with each turn, and many requests share a system text; reading is most of the time
to the first token.
How: whole chunks, found by a hash of all ids up to their end. Only what was read is kept, not what was written: keys
of one token in a pass round differently from keys of many, and an answer must not depend on what happened before.
The oldest use goes first when there are more than `most_bytes`.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile

import numpy as np
from torch import Tensor

from linnet.generate.decoder import CHUNK, Memory


class PromptCache:
    """Chunks [L, 2, H, CHUNK, D] by what they hold and what came before them; not for several threads."""

    def __init__(self, *, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.chunks: OrderedDict[bytes, Tensor] = OrderedDict()

    def known(self, ids: Sequence[int]) -> int:
        """How many at the beginning of `ids` are known."""
        return CHUNK * sum(1 for _ in takewhile(self.chunks.__contains__, _keys(ids)))

    def fill(self, memory: Memory, ids: Sequence[int]) -> None:
        """Put into the empty `memory` as many chunks at the beginning of `ids` as are known."""
        for number, key in enumerate(_keys(ids)):
            chunk = self.chunks.get(key)
            if chunk is None:
                return
            self.chunks.move_to_end(key)
            memory.chunk(number).copy_(chunk)
            memory.length += CHUNK

    def keep(self, memory: Memory, ids: Sequence[int]) -> None:
        """Take over the whole chunks of `memory`, which has read `ids`."""
        for number, key in enumerate(_keys(ids)):
            if key in self.chunks:
                self.chunks.move_to_end(key)
                continue
            chunk = memory.chunk(number).clone()
            if chunk.nbytes > self.most_bytes:
                return
            self.chunks[key] = chunk
            self.bytes += chunk.nbytes
        while self.bytes > self.most_bytes:
            self.bytes -= self.chunks.popitem(last=False)[1].nbytes


def _keys(ids: Sequence[int]) -> Iterator[bytes]:
    """A key for each whole chunk: the hash of all ids up to its end."""
    digest = blake2b(digest_size=16)
    for start in range(0, len(ids) // CHUNK * CHUNK, CHUNK):
        digest.update(np.asarray(ids[start : start + CHUNK], dtype=np.int64).tobytes())
        yield digest.digest()
