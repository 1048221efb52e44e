"""Turns of a conversation as segments of text: the one form of everything that has a question and an answer.

What   `Turn`, `Segment`, `Template`. A template gives each role a header: `user:` + ` Hi` + `\\nassistant:` + ` Hello`.
Why    Training, generation and transformers' `apply_chat_template` must end in the same ids.
How    A header is a segment, a content is one; each is encoded by itself and the ids are joined. The space at the seam
       belongs to the content. Behind each of the assistant's turns stands end-of-text, so that a model learns to stop.
       `chat_template` is the same rule in jinja; GPT-2's pre-tokenizer cuts before the space and before the newline of
       a header, so encoding the whole text there gives the ids of the segments here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer

ANSWERER = "assistant"
"""The role whose contents a model learns to write."""


class Turn(NamedTuple):
    """What one role says. Roles are `system`, `user`, `assistant`, `tool`; a template gives them their names."""

    role: str
    text: str


class Segment(NamedTuple):
    """A piece of an example; `learn=False`: only read. `ends`: end-of-text follows, learned as the piece is."""

    text: str
    learn: bool
    ends: bool = False


Example = list[Segment]


def normalize(turns: Iterable[Turn]) -> list[Turn]:
    """Contents stripped, empty turns left out, neighbours of one role joined by a newline.

    >>> normalize([Turn("user", " Hi "), Turn("assistant", ""), Turn("user", "there")])
    [Turn(role='user', text='Hi\\nthere')]
    """
    result: list[Turn] = []
    before = ""
    for turn in turns:
        role, text = turn
        stripped = text.strip()
        if not stripped:
            continue
        if role == before:
            result[-1] = Turn(role, f"{result[-1].text}\n{stripped}")
        else:
            result.append(turn if stripped is text else Turn(role, stripped))
            before = role
    return result


def answered(turns: Sequence[Turn]) -> Sequence[Turn]:
    """`turns` up to the last one of the assistant: what comes after it has no target."""
    last = next((i for i in range(len(turns), 0, -1) if turns[i - 1].role == ANSWERER), 0)
    return turns if last == len(turns) else turns[:last]


@dataclass(frozen=True)
class Template:
    """The header of each role. Contents of `assistant` are what is to be written.

    `instruct` and `chat` have system:, user:, assistant:, tool:. `papers` names the same roles title:, abstract:,
    article: (system, user, assistant), and with data.target=abstract title:, article:, abstract:.
    """

    headers: Mapping[str, str]

    def segments(self, turns: Iterable[Turn], *, learn: str = "answers") -> Example:
        """Header and content of each turn, as a row of training data; `[]` where the assistant says nothing.

        Turns behind the assistant's last are left out. `learn`: "answers" (the assistant's contents and the
        end-of-text behind each) or "all" (headers and the other contents too, but for the tool's).
        """
        return self._segments(answered(normalize(turns)), learn=learn)

    def prompt_segments(self, turns: Iterable[Turn]) -> Example:
        """All turns and the assistant's header: the model goes on with ` Hello`, space and all."""
        before = self._segments(normalize(turns), learn="answers")
        return [*before, Segment(self.header(ANSWERER, first=not before), learn=False)]

    def header(self, role: str, *, first: bool) -> str:
        """`user:` for the first turn of a row, `\\nuser:` later.

        Raises:
            LinnetError: the template has no such role.
        """
        if role not in self.headers:
            raise LinnetError(f"There is no role {role!r} in this template; use {', '.join(self.headers)}.")
        return self.headers[role] if first else "\n" + self.headers[role]

    def _segments(self, turns: Sequence[Turn], *, learn: str) -> Example:
        result: Example = []
        for role, text in turns:
            answer = role == ANSWERER
            read = not learns(role, learn)
            result.append(Segment(self.header(role, first=not result), learn == "all" and not read))
            result.append(Segment(" " + text, not read, ends=answer))
        return result

    def chat_template(self, end_token: str) -> str:
        """The jinja source for chat_template.jinja; `end_token` is the text of end-of-text.

        It renders any messages, also those that training would cut: a conversation that ends with the user's turn is
        a prompt. A role without a header raises an error. Its first line is what `parse` reads.
        """
        headers = json.dumps(dict(self.headers), ensure_ascii=False)
        end = json.dumps(end_token, ensure_ascii=False)
        return _JINJA.replace("HEADERS", headers).replace("END_TOKEN", end)

    @classmethod
    def parse(cls, jinja: str) -> Template | None:
        """The template that `chat_template` wrote; None for a file of another origin."""
        match = re.match(r"\{#-? linnet: (\{.*\}) -?#\}", jinja)
        if not match:
            return None
        try:
            headers = json.loads(match[1])
        except ValueError:
            return None
        return cls(headers) if all(isinstance(header, str) for header in headers.values()) else None


def learns(role: str, learn: str) -> bool:
    """Whether the contents of `role` are trained on; what a tool says never is."""
    return role == ANSWERER or (learn == "all" and role != "tool")


def segment_ids(tokenizer: Tokenizer, segments: Example) -> tuple[list[int], list[int]]:
    """Ids and learn flags (0, 1) of one row: `[end-of-text, 0]`, then the segments, each encoded by itself."""
    end = tokenizer.end_of_text
    ids, learn = [end], [0]
    encoded = tokenizer.encode_batch([segment.text for segment in segments])
    for segment, own in zip(segments, encoded, strict=True):
        ids += own
        learn += [int(segment.learn)] * len(own)
        if segment.ends:
            ids.append(end)
            learn.append(int(segment.learn))
    return ids, learn


CHAT = Template({"system": "system:", "user": "user:", "assistant": "assistant:", "tool": "tool:"})
PAPERS = Template({"system": "title:", "user": "abstract:", "assistant": "article:"})
SUMMARIES = Template({"system": "title:", "user": "article:", "assistant": "abstract:"})

# Every tag eats the white space around it, so the source's own lines leave nothing in the text. The sandbox that runs
# it forbids changing a list, so a turn is written as soon as it is known, and `state` remembers whose it was.
_JINJA = """\
{#- linnet: HEADERS -#}
{%- set headers = HEADERS -%}
{%- set end = END_TOKEN -%}
{%- set state = namespace(role="") -%}
{{- end -}}
{%- for message in messages -%}
  {%- set role = message["role"] -%}
  {%- if role not in headers -%}
    {{- raise_exception("There is no role '" ~ role ~ "' in this template; use " ~ headers | join(", ") ~ ".") -}}
  {%- endif -%}
  {%- set content = message["content"] or "" -%}
  {%- if content is not string -%}
    {%- set content = content | map(attribute="text") | join("\\n") -%}
  {%- endif -%}
  {%- set text = content | trim -%}
  {%- if text and role == state.role -%}
    {{- "\\n" ~ text -}}
  {%- elif text -%}
    {{- (end if state.role == "assistant" else "") ~ ("\\n" if state.role else "") -}}
    {{- headers[role] ~ " " ~ text -}}
    {%- set state.role = role -%}
  {%- endif -%}
{%- endfor -%}
{{- end if state.role == "assistant" else "" -}}
{%- if add_generation_prompt -%}
  {{- ("\\n" if state.role else "") ~ headers["assistant"] -}}
{%- endif -%}
"""
