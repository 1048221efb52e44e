"""What the other files of a folder are, where they are not like the first.

Why    `linnet inspect FOLDER` judges the first file; a README or a table beside it is then read, or fails, as that is.
How    Files are told apart by their type; of the first of each type, and of the next ones up to `JUDGED`, the beginning
       is looked at. What differs becomes one sentence.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from linnet.data.reading.records import file_kind
from linnet.errors import LinnetError
from linnet.look.guess import Guess, guess_file

JUDGED = 20  # files that are looked at; some 0.05 s each


def other_files(paths: Sequence[Path], first: Guess) -> str:
    """A sentence on those of `paths` that are not what the first one is; "" where all are alike.

    Args:
        first: the guess on `paths[0]`.
    """
    chosen = _judged(paths[1:])
    groups: dict[str, list[Path]] = {}
    for path in chosen:
        if (seen := _seen(path)) != _name(first):
            groups.setdefault(seen, []).append(path)
    if not groups:
        return ""
    parts = [
        f"{found[0].name}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {seen}"
        for seen, found in groups.items()
    ]
    seen_all = len(chosen) + 1 == len(paths)
    looked = "" if seen_all else f" (of {len(paths):,} files {len(chosen) + 1} were looked at)"
    [(usual, _)] = Counter(path.suffix for path in paths).most_common(1)
    return (
        f"Not all files are alike{looked}: {paths[0].name}, which is judged here, is {_name(first)}, but "
        f"{'; '.join(parts)}; name those that belong together by a glob, such as '*{usual}'."
    )


def _judged(paths: Sequence[Path]) -> list[Path]:
    """The first of each type, then the others, in order, as many as are looked at."""
    firsts = list({file_kind(path): path for path in reversed(paths)}.values())
    rest = [path for path in paths if path not in firsts]
    return sorted([*firsts, *rest[: max(0, JUDGED - len(firsts))]])


def _seen(path: Path) -> str:
    try:
        return _name(guess_file(path))
    except LinnetError:
        return "a file that cannot be read"


def _name(guess: Guess) -> str:
    """`JSON lines for data.format=chat`."""
    if guess.remedy:
        return f"{guess.kind}, to be mended first"
    return (
        f"{guess.kind} for data.format={guess.format}"
        if guess.format
        else f"{guess.kind} that fits no format"
    )
