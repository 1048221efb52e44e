"""One process at a time works on a run."""

import errno
import json
import os
import socket
import sys
from pathlib import Path

from linnet.errors import RunLockedError
from linnet.files.folders import make_folder
from linnet.files.operations import disk_errors

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class Lock:
    """`with Lock(folder / "lock"):` or a RunLockedError that names the other process by pid and host.

    The kernel holds the lock and frees it when the process ends, however it ends. The file stays, and what it
    says counts only while it is locked; removing it would let two processes lock two files of one name.
    A forked child shares the lock until it ends, too.
    """

    def __init__(self, path: Path, *, of: Path | None = None) -> None:
        """`of`: the folder that is locked, for the message; the one that `path` is in if not given."""
        self.path = path
        self._of = path.parent if of is None else of
        self._descriptor = -1

    def __enter__(self) -> "Lock":
        make_folder(self.path.parent)
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor):
                raise self._locked_by(os.read(descriptor, 4096))
            os.ftruncate(descriptor, 0)
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            with disk_errors(self.path):
                os.write(descriptor, json.dumps(holder).encode() + b"\n")
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)  # Closing unlocks.

    def _locked_by(self, content: bytes) -> RunLockedError:
        try:
            holder = json.loads(content)
            who = f"pid {holder['pid']} on host {holder['host']}"
        except (ValueError, LookupError, TypeError):  # It holds the lock and has not written yet.
            who = "it has just started"
        return RunLockedError(
            f"Another process ({who}) works on {self._of}; wait, stop it, or take another folder."
        )


def _lock(descriptor: int) -> bool:
    """Take the lock without waiting; False if another open file has it."""
    try:
        if sys.platform == "win32":  # A byte far behind the content, which others can then still read.
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            return True  # A file system without locks: better to train unprotected than not at all.
        raise
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return True
