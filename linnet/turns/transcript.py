"""A pasted transcript as turns: `user: Hello`, `assistant: Hi!`, `user: Which birds sing?`.

What   `read_transcript` reads a file or stdin, `parse_transcript` makes turns of its text, `write_transcript` is the
       way back.
Why    Conversations lie about as text, in files and clipboards; with this such a text is a prompt as it is.
How    The headers are those of the model's template (of a paper: `title:`, `abstract:`, `article:`), in any case, at
       the start of a line. What follows, up to the next header, is what the turn says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from linnet.errors import LinnetError, UsageError
from linnet.turns.template import ANSWERER, Template, Turn, normalize

# What else people write before a turn; taken where the template's own header is the name of the role.
ALIASES = {"human:": "user", "ai:": "assistant", "bot:": "assistant"}
SHOWN = 40  # characters of a line that is quoted in an error


def read_transcript(file: str, template: Template | None) -> list[Turn]:
    """The turns in `file` (UTF-8, with a BOM or without); "-" reads stdin.

    Raises:
        UsageError: there is no template: the model was not trained on turns.
        LinnetError: the file cannot be read, or what it says is no transcript to answer.
    """
    name = "stdin" if file == "-" else file
    if template is None:
        raise UsageError(
            "This model was not trained on turns, so it reads no transcript: give its text as the prompt."
        )
    try:
        text = (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise LinnetError(
            f"{name} cannot be read ({error.strerror}); name a file with a transcript."
        ) from error
    except UnicodeDecodeError as error:
        raise LinnetError(f"{name} is not UTF-8 (byte {error.start}); convert it first.") from error
    return parse_transcript(text, template, name=name)


def parse_transcript(text: str, template: Template, *, name: str) -> list[Turn]:
    """The turns of `text`, normalized: stripped, empty ones left out, neighbours of one role joined.

    An empty turn of the assistant at the end, `assistant:`, asks for its answer as well. `name` stands in errors.

    Raises:
        LinnetError: text before the first header, no turn at all, none of the user, or the assistant has the last word.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    roles = _roles(template)
    headers = "|".join(map(re.escape, sorted(roles, key=len, reverse=True)))
    found = list(re.finditer(f"^(?:{headers})", text, re.ASCII | re.IGNORECASE | re.MULTILINE))
    known = ", ".join(template.headers.values())
    before = text[: found[0].start()] if found else text
    if stray := before.strip():
        line = before[: before.index(stray)].count("\n") + 1
        first = stray.split("\n")[0]
        quoted = first if len(first) <= SHOWN else f"{first[:SHOWN]}..."
        raise LinnetError(
            f"{name}:{line}: {quoted!r} belongs to no turn; begin it, at the start of the line, with one of {known}."
        )
    starts = [match.start() for match in found]
    ends = [*starts[1:], len(text)]
    turns = [
        Turn(roles[match[0].lower()], text[match.end() : end])
        for match, end in zip(found, ends, strict=False)
    ]
    spoken = normalize(turns)
    if not spoken:
        raise LinnetError(f"{name}: the transcript is empty; write turns, each begun with one of {known}.")
    if all(role != "user" for role, _ in spoken):
        raise LinnetError(
            f"{name}: the transcript asks nothing, since it has no turn {template.headers['user']!r}; add one."
        )
    if spoken[-1].role == ANSWERER:
        last = max(i for i, turn in enumerate(turns) if turn.text.strip())
        line = text.count("\n", 0, starts[last]) + 1
        raise LinnetError(
            f"{name}:{line}: the transcript ends with what {template.headers[ANSWERER]!r} says, so nothing is left to "
            "answer; add a turn behind it, or take this one out to have it written anew."
        )
    return spoken


def write_transcript(turns: Iterable[Turn], template: Template) -> str:
    """The text of which `parse_transcript` makes these turns; a line that would begin a turn gets a space before it."""
    headers = "|".join(map(re.escape, _roles(template)))
    begins = re.compile(f"\n(?={headers})", re.ASCII | re.IGNORECASE)
    texts = [Turn(role, text.replace("\r\n", "\n").replace("\r", "\n")) for role, text in turns]
    return "".join(
        f"{template.headers[role]} " + begins.sub("\n ", text) + "\n" for role, text in normalize(texts)
    )


def _roles(template: Template) -> dict[str, str]:
    """Header in lower case -> role."""
    roles = {header.lower(): role for role, header in template.headers.items()}
    others = {alias: role for alias, role in ALIASES.items() if roles.get(f"{role}:") == role}
    return others | roles
