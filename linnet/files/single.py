"""One file: written in pieces and hashed on the way, or replaced whole."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from linnet.files import operations
from linnet.files.operations import disk_errors

CHUNK = 8 << 20  # 8 MB: a call costs nothing beside it, and no copy of a whole tensor appears.


class Writer:
    """Write a new file in pieces; synced at the end of its `with` block.

    Small pieces are gathered, large ones go out as they are. After the block `sha256` (hex) and `bytes`
    describe the file. An exception inside the block leaves it unsynced: its folder is a temporary one.
    `needed` is the size in bytes of the whole file, where it is known, for the message on a full disk. `durable`:
    synced; a file that can be made again, and is compared with its hash before it is used, need not be.
    """

    def __init__(self, path: Path, *, needed: int = 0, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
        self.bytes = 0
        self.sha256 = ""
        self._needed = needed
        self._gathered = bytearray()
        self._hash = hashlib.sha256()
        with disk_errors(path, needed=needed):
            self._descriptor = operations.create(path)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append the bytes of any contiguous buffer (an array's `.data`, too)."""
        view = memoryview(data)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        if view.nbytes >= CHUNK:
            self._flush()
            self._put(view)
            return
        self._gathered += view
        if len(self._gathered) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._put(memoryview(gathered))

    def _put(self, view: memoryview) -> None:
        self.bytes += view.nbytes
        with disk_errors(self.path, needed=max(self._needed, self.bytes)):
            while view.nbytes:
                chunk = view[:CHUNK]
                written = operations.write(self._descriptor, chunk)  # It may take less than it was given.
                if written == 0:
                    raise OSError(errno.EIO, "write() took nothing")
                self._hash.update(chunk[:written])
                view = view[written:]

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                if self._durable:
                    with disk_errors(self.path, needed=max(self._needed, self.bytes)):
                        operations.fsync(self._descriptor)  # Never tried twice: a lost page is reported once.
                self.sha256 = self._hash.hexdigest()
        finally:
            os.close(self._descriptor)


def write_file(path: Path, chunks: Iterable[bytes | memoryview], *, durable: bool = True) -> str:
    """Write a file whole: `path` has its old bytes or the new ones, never a part. Returns the sha256.

    `durable`: synced; what is drawn anew again and again need not be.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with Writer(beside, durable=durable) as out:
            for chunk in chunks:
                out.write(chunk)
        with disk_errors(path, needed=out.bytes):
            operations.rename(beside, path)
            if durable:
                operations.sync(path.parent)
    except Exception:
        with suppress(OSError):
            operations.unlink(beside)
        raise
    return out.sha256


def json_bytes(value: Any) -> bytes:
    """Our one form of JSON: keys sorted, indent 2, a newline at the end; NaN is a ValueError.

    Half a character, as a file's name that is not UTF-8 has them, is escaped: `\\udcff`.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode(errors="backslashreplace")


def write_json(path: Path, value: Any) -> str:
    """`write_file` of `json_bytes(value)`; returns the sha256 in hex."""
    return write_file(path, [json_bytes(value)])


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
