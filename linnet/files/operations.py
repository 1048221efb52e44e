"""The system calls that change the disk, one line each, and what their errors mean.

Why: everything else in this package calls them as `operations.NAME(...)`, so that a test can count them and
make the k-th fail or be the last one of the process (tests/faults.py).
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from linnet.errors import DiskError

if sys.platform != "win32":
    import fcntl

NAMES = ("create", "write", "fsync", "rename", "unlink", "mkdir", "rmdir")


def create(path: Path) -> int:
    """Open a new, empty file for writing; returns its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)


def write(descriptor: int, data: memoryview) -> int:
    return os.write(descriptor, data)


def fsync(descriptor: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # There fsync stops at the drive's cache.
    else:
        os.fsync(descriptor)


def rename(old: Path, new: Path) -> None:
    old.replace(new)


def unlink(path: Path) -> None:
    path.unlink()


def mkdir(path: Path) -> None:
    path.mkdir()


def rmdir(path: Path) -> None:
    path.rmdir()


def sync(path: Path) -> None:
    """fsync a file or a folder by its name, where the system can: Windows cannot open a folder."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise  # Some network file systems know no fsync of a folder; that of a file must work.
    finally:
        os.close(descriptor)


_ROOM = "make room there, then start the same command again"
_PLACE = "mend that or choose another folder, then start the same command again"
_REASONS = {
    errno.ENOSPC: ("The disk is full", _ROOM),
    errno.EDQUOT: ("The disk quota is used up", _ROOM),
    errno.EFBIG: ("The file is larger than the system allows (see `ulimit -f`)", _PLACE),
    errno.EIO: ("The disk reports an input/output error", _PLACE),
    errno.EROFS: ("The file system is read-only", _PLACE),
    errno.EACCES: ("Writing is not permitted", _PLACE),
    errno.EPERM: ("Writing is not permitted", _PLACE),
}


@contextmanager
def disk_errors(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn an OSError of a write into a DiskError that names `path` and, if known, the bytes `needed`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        reason, advice = _REASONS[error.errno]
        size = f" needs {needed:,} bytes" if needed else ""
        free = ""
        with suppress(OSError, StopIteration):
            nearest = next(folder for folder in path.absolute().parents if folder.exists())
            free = f" ({shutil.disk_usage(nearest).free:,} bytes are free)" if advice == _ROOM else ""
        raise DiskError(f"{reason}: {path}{size}{free}; {advice}.") from error
