"""A row of a data set becomes turns, whatever its columns are called.

What   `RowFormat.parse`: `lines` and `text` give one turn of text, `instruct` a question and an answer, `chat` its
       turns, `papers` title, abstract and article.
Why    What comes later (filters, tokens, windows) then knows turns only.
How    `make_row_format` finds the columns by the first rows of a file; `parse` is called for each row and raises
       `Unusable` with the reason where a row does not fit. docs/formats.md says what becomes of the odd cases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linnet.config import DataConfig
from linnet.data.columns import find_columns
from linnet.data.papers import paper_turns
from linnet.data.rows import Unusable
from linnet.errors import LinnetError
from linnet.turns.layout import SECTIONS
from linnet.turns.template import ANSWERER, CHAT, PAPERS, SUMMARIES, Template, Turn, normalize

# Names of roles as published sets have them (ShareGPT: human and gpt; OASST: prompter).
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class RowFormat:
    """How rows of one file are read.

    Attributes:
        columns: what the format reads -> the name of its column.
        template: None for text and lines, which have no targets.
        learn, target, reads: as in the recipe's data part.
    """

    format: str
    columns: Mapping[str, str]
    template: Template | None
    learn: str = "answers"
    target: str = "article"
    reads: str = "start"

    def parse(self, values: Mapping[str, Any]) -> list[Turn]:
        """The turns of a row, normalized; `[]` for an empty one.

        Raises:
            Unusable: the row does not fit the format.
        """
        turns = _PARSERS[self.format](values, self)
        for turn in turns:
            if not turn.text.isascii():
                _refuse_half_characters(turn.text)
        return turns

    @property
    def marks(self) -> str:
        """What the template may put into any row; a tokenizer of characters must know these too."""
        if self.template is None:
            return ""
        sections = f"{SECTIONS} ;" if self.template == PAPERS else ""
        return "".join(self.template.header(role, first=False) for role in self.template.headers) + sections

    def text(self, turns: Sequence[Turn]) -> str:
        """The row with its headers: what a tokenizer is to be trained on.

        Turns behind the last answer are in it, too: they are not learned, but their tokens are counted.
        """
        if self.template is None:
            return "".join(turn.text for turn in turns)
        *segments, _ = self.template.prompt_segments(turns)  # without the header of a next answer
        return "".join(segment.text for segment in segments)


def make_row_format(
    data: DataConfig, first: Sequence[Mapping[str, Any]], *, where: str, later: Sequence[str] = ()
) -> RowFormat:
    """The format of a file whose first rows are `first`.

    Args:
        where: the file, for the error.
        later: columns that only rows further down have.

    Raises:
        LinnetError: its columns cannot be mapped; the message shows the line to write. Or it has no rows.
    """
    names = list(dict.fromkeys(name for values in first for name in values))
    if not first and data.format in ("text", "lines"):
        names = ["text"]  # an empty file
    elif not first:
        raise LinnetError(f"{where} holds no rows; leave it out of data.source.")
    columns = find_columns(data.format, names, data.columns, where=where, later=later)
    return RowFormat(
        data.format, columns, template_of(data), learn=data.learn, target=data.target, reads=data.reads
    )


def template_of(data: DataConfig) -> Template | None:
    """The template of a format with targets; None for text and lines."""
    if data.format in ("instruct", "chat"):
        return CHAT
    if data.format == "papers":
        return PAPERS if data.target == "article" else SUMMARIES
    return None


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise Unusable(
            f"half a character, the lone surrogate U+{code:04X}, which UTF-8 cannot write"
        ) from None


def _text_turns(values: Mapping[str, Any], row: RowFormat) -> list[Turn]:
    text = scalar_text(values, row.columns["text"])
    return [Turn("text", text)] if text.strip() else []


def _instruct_turns(values: Mapping[str, Any], row: RowFormat) -> list[Turn]:
    columns = row.columns
    texts = {
        what: scalar_text(values, columns[what], needed=what == "answer").strip()
        for what in ("system", "question", "input", "answer")
        if what in columns
    }
    if not any(texts.values()):
        return []
    if not texts["answer"]:
        raise Unusable(f"the {columns['answer']} is empty")
    question = "\n".join(text for text in (texts["question"], texts.get("input", "")) if text)
    if not question:
        raise Unusable(f"the {columns['question']} is empty")
    return normalize(
        [Turn("system", texts.get("system", "")), Turn("user", question), Turn(ANSWERER, texts["answer"])]
    )


def scalar_text(values: Mapping[str, Any], column: str, *, needed: bool = True) -> str:
    """The text of one column; a number or a truth value is written out, a missing optional one is "".

    Raises:
        Unusable: the column is missing, or holds a list or an object.
    """
    value = values.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        if needed and column not in values:
            raise Unusable(f"the column {column} is missing")
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise Unusable(f"{column} is {kind_of(value)}, not a text")


def kind_of(value: Any) -> str:
    """A value's type in the words of JSON."""
    if isinstance(value, str):
        return "a text"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return "null" if value is None else f"a {type(value).__name__}"


def _chat_turns(values: Mapping[str, Any], row: RowFormat) -> list[Turn]:
    column = row.columns["messages"]
    messages = values.get(column)
    if isinstance(messages, str):  # as CSV has them
        try:
            messages = json.loads(messages)
        except ValueError:
            raise Unusable(f"{column} is a text that is no JSON") from None
    if not isinstance(messages, list | tuple):
        raise Unusable(f"{column} is {kind_of(messages)}, not a list of turns")
    turns = []
    if "system" in row.columns:
        turns.append(Turn("system", scalar_text(values, row.columns["system"], needed=False)))
    for number, message in enumerate(messages, 1):
        try:
            role, content = message["role"], message["content"]
        except (KeyError, TypeError):
            role, content = _other_names(message, number)
        known = ROLES.get(role) if isinstance(role, str) else None
        turns.append(
            Turn(
                known or _folded(role, number),
                content if isinstance(content, str) else _content(content, number),
            )
        )
    turns = normalize(turns)
    if not turns:
        return []
    if not any(turn.role == ANSWERER for turn in turns):
        raise Unusable("no assistant turn")
    return turns


def _other_names(message: Any, number: int) -> tuple[Any, Any]:
    """Role and content of a turn as ShareGPT has it, or of one without a content."""
    if isinstance(message, Mapping):
        if "role" in message:
            return message["role"], message.get("content")
        if "from" in message and "value" in message:
            return message["from"], message["value"]
    raise Unusable(f"turn {number} is not of the form {{role, content}} or {{from, value}}")


def _folded(role: Any, number: int) -> str:
    """The role of a name that is written in another case."""
    known = ROLES.get(role.casefold()) if isinstance(role, str) else None
    if known is None:
        raise Unusable(f"turn {number} has the unknown role {role!r:.80}")
    return known


def _content(content: Any, number: int) -> str:
    """The text of a content that is null or a list of parts."""
    if content is None:
        return ""
    if not isinstance(content, list | tuple):
        raise Unusable(f"the content of turn {number} is {kind_of(content)}, not a text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise Unusable(f"turn {number} has a part that is not text")
        texts.append(text)
    return "\n".join(texts)


def _papers_turns(values: Mapping[str, Any], row: RowFormat) -> list[Turn]:
    return paper_turns(values, row.columns, target=row.target)


_PARSERS: dict[str, Callable[[Mapping[str, Any], RowFormat], list[Turn]]] = {
    "text": _text_turns,
    "lines": _text_turns,
    "instruct": _instruct_turns,
    "chat": _chat_turns,
    "papers": _papers_turns,
}
