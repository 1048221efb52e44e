"""What a .wandb file holds: the file into which W&B writes a run on this disk.

Why    W&B's own process does not say when it cannot write: on a full disk it ends as if all were well. So the steps are
       counted in the file.
How    LevelDB's log format: after a header of 7 bytes, blocks of 32 KiB; a record is cut into parts that do not cross a
       block. See https://github.com/google/leveldb/blob/main/doc/log_format.md.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator
from pathlib import Path

HEADER = b":W&B\xe1\xbe\x00"  # the name, a magic number, version 0
BLOCK = 32 * 1024
PART = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, LAST = 1, 4  # kinds of parts with which a record ends


def steps_in(path: Path) -> list[int] | None:
    """The steps of the rows in the file, in its order; None where it is of a form that this does not know."""
    content = path.read_bytes()
    if not content.startswith(HEADER):
        return None
    record_of = importlib.import_module("wandb.proto.wandb_internal_pb2").Record.FromString
    parsed = (record_of(record) for record in records(content))
    return [record.history.step.num for record in parsed if record.WhichOneof("record_type") == "history"]


def records(content: bytes) -> Iterator[bytes]:
    """The whole records; a torn last one is left out."""
    place, record = len(HEADER), b""
    while place + PART.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < PART.size:
            place += left
            continue
        _, length, kind = PART.unpack_from(content, place)
        place += PART.size
        record += content[place : place + length]
        place += length
        if place > len(content) or kind == 0:
            return
        if kind in (WHOLE, LAST):
            yield record
            record = b""
