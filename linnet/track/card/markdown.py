"""Text of unknown origin in Markdown: names of people's folders, and what a model has written.

Why    A model may write a fence, a heading, HTML or escape codes. None of that may change the page around it.
How    `plain` for prose, `code` for a name within a line, `fence` for a block. All drop control characters.
"""

import re

from linnet.track.progress import printable


def plain(text: str) -> str:
    """A text of unknown origin in prose: one line, without meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~])", r"\\\1", " ".join(printable(text).split()))


def code(text: str) -> str:
    """The same as code within a line, in more backticks than it has in a row itself."""
    line = " ".join(printable(text).split())
    ticks = "`" * (1 + max(map(len, re.findall(r"`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fence(text: str, language: str = "text") -> str:
    """A block of code: no line within can end it, since the fence is longer than any in the text."""
    text = printable(text)
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"
