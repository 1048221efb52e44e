"""How turns lie in a row of so many ids, and what gives way where they do not fit.

What   `Layout` lays turns out as ids: shortens what is read, goes on with a text that is longer than the row, and makes
       the prompts of generation.
Why    A model goes on with a long text well only from prompts that look like the windows that it was trained on, so
       data and generation share this file.
How    A row is `[end-of-text]`, then header and content of each turn. What is carried from before takes at most half a
       row; the longest turn gives way first, at the end of a sentence. Where a text goes on, half the row is new.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer
from linnet.turns.excerpt import excerpt
from linnet.turns.sentences import last_sentence_end
from linnet.turns.template import ANSWERER, PAPERS, SUMMARIES, Template, Turn, normalize

FEWEST = 3  # ids that a row must have left beside its headers: one repeated, one new, end-of-text


class Part(NamedTuple):
    """A turn as ids.

    Attributes:
        ids: of " " + its text.
        number: its place in the conversation.
    """

    role: str
    text: str
    ids: list[int]
    number: int


class Layout:
    """The rows of one template.

    Attributes:
        size: most ids of a row, the first end-of-text included.
        first, later: ids of each role's header at the start of a row, and after something.
        lists_headings: a text that goes on is told the headings so far.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, *, size: int, reads: str = "start") -> None:
        """`reads`: what of an article too long is read to write its abstract: "start", "ends" or "spread".

        Raises:
            LinnetError: a row has no room beside the headers.
        """
        self.template, self.tokenizer, self.size = template, tokenizer, size
        self.reads = reads if template == SUMMARIES else "start"
        self._bytes = tokenizer.byte_lengths()
        self.lists_headings = template == PAPERS
        roles = list(template.headers)
        self.first = self._headers(roles, first=True)
        self.later = self._headers(roles, first=False)
        self.overhead = {
            role: max(len(self.first[role]), len(self.later[role])) + (role == ANSWERER) for role in roles
        }
        longest = max(self.overhead.values())
        if size < longest + 1 + FEWEST:
            raise LinnetError(
                f"A row of {size} tokens has no room beside the header {template.headers[ANSWERER]!r}; "
                f"set train.block_size={longest + FEWEST} or more."
            )

    def _headers(self, roles: list[str], *, first: bool) -> dict[str, list[int]]:
        ids = self.tokenizer.encode_batch([self.template.header(role, first=first) for role in roles])
        return dict(zip(roles, ids, strict=True))

    def parts(self, turns: Iterable[Turn]) -> list[Part]:
        """Normalized turns as ids."""
        kept = normalize(turns)
        ids = self.tokenizer.encode_batch([" " + text for _, text in kept])
        return [Part(role, text, own, i) for i, ((role, text), own) in enumerate(zip(kept, ids, strict=True))]

    def cost(self, parts: Iterable[Part]) -> int:
        """Ids that `parts` take in a row at most, with headers and end-of-text."""
        return sum(self.overhead[part.role] + len(part.ids) for part in parts)

    def read(self, parts: Iterable[Part]) -> list[int]:
        """A row that begins with `parts`."""
        end = self.tokenizer.end_of_text
        ids, headers = [end], self.first
        for part in parts:
            ids += headers[part.role]
            ids += part.ids
            if part.role == ANSWERER:
                ids.append(end)
            headers = self.later
        return ids

    # -- what gives way ------------------------------------------------------------------------------------------

    def carried(self, role: str) -> int:
        """Most ids that are carried into a row in which `role` goes on: half of it."""
        return min(self.size // 2, self.size - 1 - self.overhead[role] - FEWEST)

    def shorten(self, parts: Sequence[Part], room: int) -> list[Part]:
        """`parts` in at most `room` ids: the longest are cut down to one length; one without room is left out."""
        if self.cost(parts) <= room:
            return list(parts)
        cap = _cap([self.overhead[part.role] + len(part.ids) for part in parts], room)
        kept = [self._cut_part(part, cap - self.overhead[part.role]) for part in parts]
        return [part for part in kept if part.ids]

    def _cut_part(self, part: Part, room: int) -> Part:
        if len(part.ids) <= room:
            return part
        if room <= 0:
            return part._replace(ids=[])
        if self.reads != "start" and part.role == "user":
            chosen = excerpt(part.text, self.reads, room=room, lengths=self._lengths)
            ids = self.tokenizer.encode_batch([" " + chosen])[0]
            if chosen and len(ids) <= room:
                return part._replace(ids=ids)
        return part._replace(ids=part.ids[: self.cut(part.ids, room // 2, room, paragraphs=False)])

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer.encode_batch([" " + text for text in texts])]

    def cut(self, ids: Sequence[int], low: int, high: int, *, paragraphs: bool = True) -> int:
        """Where to cut `ids` between `low` and `high`: after a paragraph, a sentence, a word, or else at `high`."""
        begin = max(0, low - _BEFORE)
        text = self.tokenizer.decode(ids[begin:high])
        while begin and text.startswith("\ufffd") and begin > low - _BEFORE - 3:
            begin -= 1  # back to where a character begins; one has at most four bytes
            text = self.tokenizer.decode(ids[begin:high])
        ends = [0, *accumulate(self._bytes[token] for token in ids[begin:high])]
        least = len(self.tokenizer.decode(ids[begin:low]))
        places = [text.rfind("\n", least)] if paragraphs else []
        places += [last_sentence_end(text, start=least, growing=True), text.rfind(" ", least)]
        for place in places:
            cut = begin + bisect_left(ends, len(text[: max(place, 0)].encode()))
            # The texts differ where the tokenizer's decoder puts in something of its own.
            if low < cut <= high and self.tokenizer.decode(ids[begin:cut]) == text[:place]:
                return cut
        return high

    # -- a text that is longer than the row ----------------------------------------------------------------------

    def begin(self, context: Sequence[Part], role: str, *, needs: int) -> tuple[list[int], list[Part]]:
        """The row up to the header of `role`, which then needs `needs` ids, and what was read of `context`.

        The context gets what is left, and at least half of the row.
        """
        left = self.size - 1 - self.overhead[role] + (role == ANSWERER) - needs
        kept = self.shorten(context, max(self.carried(role), left))
        return [*self.read(kept), *self._header(role, first=not kept)], kept

    def carry(self, context: Sequence[Part], role: str) -> list[Part]:
        """`context` in at most a quarter of a row, for the rows in which a text of `role` goes on."""
        return self.shorten(context, min(self.size // 4, self.carried(role)))

    def go_on(
        self, context: Sequence[Part], role: str, tail: Sequence[int], headings: Sequence[str] = ()
    ) -> list[int]:
        """The row in which a text of `role` goes on, up to where it does: half of it, and the header.

        That is what `carry` left of the context, the headings so far, the header, and the end of `tail`, the text so
        far. Headings and repeated text take at most a quarter together.
        """
        ids = self.read(context)
        sections = self._sections(headings) if self.lists_headings and context else []
        ids += sections
        ids += self._header(role, first=not context)
        repeated = min(self.size // 4 - len(sections), (self.size - len(ids) - 1) // 2)
        return [*ids, *tail[max(0, len(tail) - repeated) :]]

    def _header(self, role: str, *, first: bool) -> list[int]:
        return (self.first if first else self.later)[role]

    def _sections(self, headings: Sequence[str]) -> list[int]:
        """`\\nsections: Introduction; Methods`, the last of them, in at most an eighth of the row."""
        for start in range(len(headings)):
            header, names = self.tokenizer.encode_batch([SECTIONS, " " + "; ".join(headings[start:])])
            if len(header) + len(names) <= self.size // 8:
                return [*header, *names]
        return []

    # -- prompts of generation -----------------------------------------------------------------------------------

    def prompt(self, turns: Iterable[Turn], *, reply: int) -> list[int]:
        """A row that asks for an answer to what `fit` keeps of the turns."""
        return self.ask(self.fit(turns, reply=reply))

    def ask(self, parts: Sequence[Part]) -> list[int]:
        """`parts`, and the header of the assistant, who is to go on."""
        return [*self.read(parts), *self._header(ANSWERER, first=not parts)]

    def fit(self, turns: Iterable[Turn], *, reply: int) -> list[Part]:
        """`turns` in a row that leaves the assistant at least `reply` ids for its answer.

        Where the turns do not fit, the system's and the last whole ones stay; where those since the assistant's last
        are too long by themselves, they are shortened. At least half the row is for the turns.
        """
        parts = self.parts(turns)
        room = max(self.size - 1 - self.overhead[ANSWERER] - reply, self.carried(ANSWERER))
        if self.cost(parts) <= room:
            return parts
        said = max((i for i, part in enumerate(parts, 1) if part.role == ANSWERER), default=0)
        own = parts[said:] or parts[-1:]
        kept = self._recent(parts, room)
        if kept[-len(own) :] == own:
            return kept
        # Where these do not fit: as in training, what leads to the answer, in the room that there is.
        lead = self.shorten(parts[:1], self.size // 4) if parts[0].role == "system" and said else []
        return self.shorten([*lead, *own], room)

    def _recent(self, parts: Sequence[Part], room: int) -> list[Part]:
        """The last whole turns that fit into `room`, and before them the system's message in at most half of it."""
        lead: list[Part] = []
        if parts[0].role == "system":
            lead, parts = self.shorten(parts[:1], room // 2), parts[1:]
        left = room - self.cost(lead)
        start = len(parts)
        while start and (left := left - self.cost(parts[start - 1 : start])) >= 0:
            start -= 1
        return [*lead, *parts[start:]]


SECTIONS = "\nsections:"
_BEFORE = 16  # ids before a place by which it is known as the end of a sentence or not (`Dr.`)
_BELOW = 100  # characters of the paragraph below
_HEADING = re.compile(rf"^[^\S\n]*(\S[^\n]{{0,58}}[^\s.!?:;,])[^\S\n]*\n(?=[^\n]{{{_BELOW}}})", re.MULTILINE)


def headings(text: str) -> list[str]:
    """The lines of `text` that look like headings.

    That is a line of at most 60 characters and 8 words that begins with a capital, has no full stop or the like at its
    end, and has a paragraph of at least 100 characters below it.
    """
    return [name for _, name in heading_places(text)]


def heading_places(text: str) -> list[tuple[int, str]]:
    """The same headings, each with the length of text in which it is seen to be one."""
    found = [(match.end() + _BELOW, match[1]) for match in _HEADING.finditer(text)]
    return [(end, name) for end, name in found if name[0].isupper() and len(name.split()) <= 8]


def _cap(costs: Sequence[int], room: int) -> int:
    """The length to which the longest must be cut so that all together fit into `room`."""
    left = room
    for i, cost in enumerate(ordered := sorted(costs)):
        if cost * (len(ordered) - i) > left:
            return left // (len(ordered) - i)
        left -= cost
    return max(costs, default=0)
