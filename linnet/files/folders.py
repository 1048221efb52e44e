"""A folder appears, is replaced, and disappears whole.

A crash can come after every single call here. Then `repair_folder` (one folder) or `remove_leftovers` (all
of a parent) clears what lies around; both are for whoever holds the run's lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from linnet.errors import DiskError
from linnet.files import operations
from linnet.files.operations import disk_errors


def make_folder(path: Path) -> None:
    """Create a folder and its parents, each synced into the one above; one that exists is fine."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with disk_errors(path):
        with suppress(FileExistsError):
            operations.mkdir(path)
        operations.sync(path.parent)


def temporary_folder(final: Path) -> Path:
    """An empty hidden folder beside `final`, to be filled and given its name; clears what a crash left there."""
    make_folder(final.parent)
    repair_folder(final)
    temporary = _hidden(final, ".tmp")
    with disk_errors(temporary):
        operations.mkdir(temporary)
    return temporary


def replace_folder(new: Path, final: Path, *, durable: bool = True) -> None:
    """Put a complete `new`, which is `temporary_folder(final)`, in the place of `final`, which may exist.

    No portable call exchanges two folders: the old one is renamed aside, the new one in, the old one removed.
    A crash between the renames leaves no `final`; `repair_folder` then ends what was begun.
    """
    aside = _hidden(final, ".old")
    if new != _hidden(final, ".tmp"):
        raise ValueError(f"{new} is not temporary_folder({final}), so repair_folder would not find it")
    with disk_errors(final):
        if durable:
            _sync_tree(new)
        if final.exists():
            _remove_tree(aside)
            operations.rename(final, aside)
        operations.rename(new, final)
        operations.sync(final.parent)
        _remove_tree(aside)


def repair_folder(final: Path) -> None:
    """Finish or undo a `replace_folder` that was cut off, and clear its leftovers.

    No `final` and an old one aside: the new one is complete, as the first rename comes after all syncs.
    """
    new, aside = _hidden(final, ".tmp"), _hidden(final, ".old")
    with disk_errors(final):
        if not final.exists() and aside.exists():
            operations.rename(new if new.exists() else aside, final)
            operations.sync(final.parent)
        for leftover in (new, aside, _hidden(final, ".removed")):
            _remove_tree(leftover)


@contextmanager
def new_folder(final: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty folder to fill; after the block it is `final`, in the place of an older one.

    `durable`: all of it is synced first; not worth it where the folder can be made again and is verified before use.
    After an exception inside the block `final` is untouched and the new folder is removed.
    """
    temporary = temporary_folder(final)
    try:
        yield temporary
        replace_folder(temporary, final, durable=durable)
    except Exception:
        with suppress(OSError, DiskError):  # What cannot be cleared now is cleared at the next start.
            repair_folder(final)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder; it is never half visible, since it gets a hidden name first."""
    hidden = _hidden(path, ".removed")
    with disk_errors(path):
        _remove_tree(hidden)
        operations.rename(path, hidden)
        operations.sync(path.parent)
        _remove_tree(hidden)


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary and half removed files and folders that a crash left in `parent`."""
    for pattern in (".*.tmp", ".*.removed"):
        for path in sorted(parent.glob(pattern)):
            with disk_errors(path):
                _remove_tree(path)


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            _remove_tree(child)
        operations.rmdir(path)
    elif path.is_symlink() or path.exists():
        operations.unlink(path)


def _sync_tree(folder: Path) -> None:
    """Sync what others wrote into a folder, too; a second sync of a file costs microseconds."""
    for path in sorted(folder.rglob("*"), reverse=True):  # Children before their folder.
        operations.sync(path)
    operations.sync(folder)


def expand_home(name: str | Path) -> Path:
    """The path with ~ as the home folder. That of a user who is not there stays as it is typed: nothing lies there."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
