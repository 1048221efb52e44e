"""Turns become examples that fit a row: ids, and for each whether it is learned.

What   `Encoder`: rows of turns -> `Encoded`, their windows and the counts of what was present.
Why    What does not fit must not be lost: each target token is learned exactly once, whatever the row's size.
How    Most rows fit, and take a short path. Of a longer one, windows take whole turns and carry the last ones (read) in
       at most half a row; a target that is longer than the row goes on in further windows, each with the shortened
       context and the end of what came before, in half the row. Only where a target ends stands its end-of-text.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from linnet.data.rows import Encoded, Window
from linnet.tokenizer import FlatIds, Tokenizer
from linnet.turns.layout import Layout, Part, heading_places
from linnet.turns.template import ANSWERER, Turn, answered, learns, normalize

if TYPE_CHECKING:
    from linnet.data.formats import RowFormat

TEXT = "text"  # the role of a line


class Encoder:
    """Rows of one format as windows of at most `size` ids."""

    def __init__(self, row_format: RowFormat, tokenizer: Tokenizer, *, size: int) -> None:
        """`size`: most ids of a window, block_size + 1. A document (`text`) stays one window of any length.

        Raises:
            LinnetError: a row has no room beside the template's headers.
        """
        self.tokenizer = tokenizer
        self.size = sys.maxsize if row_format.format == "text" else size
        self.learn = row_format.learn
        self.layout: Layout | None = None
        headers: dict[str, list[int]] = {TEXT: []}
        if row_format.template:
            self.layout = Layout(row_format.template, tokenizer, size=size, reads=row_format.reads)
            headers = self.layout.later
        self._roles = {role: number for number, role in enumerate(headers)}
        end = tokenizer.end_of_text
        first = self.layout.first if self.layout else headers
        # Two for each role: at the start of a row, with the end-of-text before it, and later.
        self._headers = [[end, *first[role]] for role in headers] + list(headers.values())
        self._header_lengths = np.array([len(header) for header in self._headers])
        self._ends = np.array([role in (ANSWERER, TEXT) for role in headers])
        self._learned = {role: role == TEXT or learns(role, self.learn) for role in headers}
        self._learned_header = {role: self.learn == "all" and self._learned[role] for role in headers}

    def __call__(self, rows: Sequence[Sequence[Turn]]) -> list[Encoded]:
        """What becomes of each row. The contents of all are encoded in one call."""
        if self.layout:
            kept: list[list[Turn]] = [normalize(turns) for turns in rows]
            contents = self.tokenizer.encode_flat([" " + text for turns in kept for _, text in turns])
            used = [len(answered(turns)) for turns in kept]
        else:
            kept = [[turn for turn in turns if turn.text] for turns in rows]
            contents = self.tokenizer.encode_flat([text for turns in kept for _, text in turns])
            used = list(map(len, kept))
        windows, lengths = self._whole_rows(kept, used, contents)
        places = [0, *accumulate(map(len, kept))]
        sources = np.diff(contents.offsets[places]).tolist()
        encoded = []
        for i, (window, length) in enumerate(zip(windows, lengths, strict=True)):
            if 0 < length <= self.size and used[i] == len(kept[i]):
                encoded.append(Encoded([window], sources[i], sources[i], shortened=False))
            elif not length:
                encoded.append(Encoded([], sources[i], 0, shortened=False))
            else:
                edges = contents.offsets[places[i] : places[i] + used[i] + 1].tolist()
                ids = [contents.ids[start:stop].tolist() for start, stop in pairwise(edges)]
                encoded.append(self._windowed(kept[i], ids, window, sources[i]))
        return encoded

    def _whole_rows(
        self, rows: list[list[Turn]], used: list[int], contents: FlatIds
    ) -> tuple[list[Window], list[int]]:
        """Each row as one window of whatever length, and these lengths; of each row the first `used` turns count.

        All rows are laid into one array: three runs for each turn (header, content, end-of-text), of which some are
        empty. Python works for each turn, numpy for each token.
        """
        turns = sum(map(len, rows))
        role = np.array([self._roles[name] for row in rows for name, _ in row], np.int64)
        counts = np.array([len(row) for row in rows], np.int64)
        number = np.arange(turns) - np.repeat(np.cumsum(counts) - counts, counts)  # of the turn in its row
        counted = number < np.repeat(used, counts)
        header = role + len(self._roles) * (number > 0)
        runs = np.stack(
            [self._header_lengths[header], np.diff(contents.offsets), self._ends[role].astype(np.int64)],
            axis=1,
        )
        runs *= counted[:, None]
        flags = np.array([[self._learned_header[r], self._learned[r], True] for r in self._roles], np.uint8)
        learn = np.repeat(flags[role].ravel(), runs.ravel())
        ids = np.empty(len(learn), np.uint32)
        starts = np.cumsum(runs.sum(1)) - runs.sum(1)
        for which, header_ids in enumerate(self._headers):
            there = starts[(header == which) & counted]
            ids[there[:, None] + np.arange(len(header_ids))] = header_ids
        learn[starts[(number == 0) & counted]] = 0  # the end-of-text that a row begins with
        is_content = np.repeat(np.tile([False, True, False], turns), runs.ravel())
        own = contents.ids if counted.all() else contents.ids[np.repeat(counted, np.diff(contents.offsets))]
        ids[is_content] = own
        ids[(starts + runs[:, 0] + runs[:, 1])[runs[:, 2] > 0]] = self.tokenizer.end_of_text
        edges = np.append(starts, len(ids))[np.append(0, np.cumsum(counts))].tolist()
        windows = [Window(ids[start:stop], learn[start:stop]) for start, stop in pairwise(edges)]
        return windows, [stop - start for start, stop in pairwise(edges)]

    # -- rows that are cut -----------------------------------------------------------------------------------------

    def _windowed(self, turns: list[Turn], contents: list[list[int]], whole: Window, source: int) -> Encoded:
        """A row whose last turns are not used, or that is longer than a window."""
        parts = [
            Part(turn.role, turn.text, ids, i)
            for i, (turn, ids) in enumerate(zip(turns, contents, strict=False))
        ]
        seen = [len(part.ids) for part in parts]
        if len(whole.ids) <= self.size:
            windows = [whole]
        elif self.layout is None:
            windows = list(self._line_windows([*contents[0], self.tokenizer.end_of_text]))
        else:
            row = _LongRow(parts, whole, self.layout, self._learned, self._learned_header)
            windows, seen = list(row.windows()), row.seen
        shortened = any(count < len(part.ids) for count, part in zip(seen, parts, strict=True))
        return Encoded(windows, source, sum(seen), shortened=shortened)

    def _line_windows(self, ids: list[int]) -> Iterator[Window]:
        """Windows of a line; each repeats a quarter row of what comes before it."""
        end, done = self.tokenizer.end_of_text, 0
        while done < len(ids):
            repeated = min(done, self.size // 4)
            stop = min(len(ids), done + self.size - 1 - repeated)
            yield _window([end, *ids[done - repeated : stop]], [0] * (1 + repeated) + [1] * (stop - done))
            done = stop


class _LongRow:
    """The windows of a row that is longer than a window.

    Attributes:
        parts: its turns, up to the last answer.
        whole: the same laid out as one window.
        seen: how many ids of each turn's content are in a window.
    """

    def __init__(
        self,
        parts: list[Part],
        whole: Window,
        layout: Layout,
        learned: Mapping[str, bool],
        learned_header: Mapping[str, bool],
    ) -> None:
        self.parts, self.whole, self.layout = parts, whole, layout
        self.learned, self.learned_header = learned, learned_header
        self.seen = [0] * len(parts)
        # Ids up to each turn: as they are counted, and as they lie in `whole`, which begins with end-of-text.
        self.costs = [0, *accumulate(layout.cost([part]) for part in parts)]
        lengths = [
            len(self._header(i)) + len(part.ids) + (part.role == ANSWERER) for i, part in enumerate(parts)
        ]
        self.places = list(accumulate(lengths, initial=1))

    def _header(self, number: int) -> list[int]:
        return (self.layout.later if number else self.layout.first)[self.parts[number].role]

    def windows(self) -> Iterator[Window]:
        """Windows of whole turns, and of parts of a turn that does not fit with what leads to it."""
        targets = [part.number for part in self.parts if self.learned[part.role]]
        start = number = 0
        while number < len(targets):
            stop = targets[number] + 1
            number += 1
            left = self.layout.size - 1 - (self.costs[stop] - self.costs[start])
            if left < 0:
                yield from self._one_target(start, stop - 1)
                start = stop
                continue
            lead, first = self._carried(start, room=min(left, self.layout.size // 2))
            left -= self.layout.cost(lead) + self.costs[start] - self.costs[first]
            while number < len(targets) and self.costs[targets[number] + 1] - self.costs[stop] <= left:
                left -= self.costs[targets[number] + 1] - self.costs[stop]
                stop = targets[number] + 1
                number += 1
            self.seen[start:stop] = [len(part.ids) for part in self.parts[start:stop]]
            yield self._whole_turns(lead, first, start, stop)
            start = stop

    def _carried(self, start: int, *, room: int) -> tuple[list[Part], int]:
        """What is read again in `room` ids: the system's message in at most half, and whole turns from a number on."""
        system = int(start > 0 and self.parts[0].role == "system")
        lead = self.layout.shorten(self.parts[:system], room // 2)
        left = room - self.layout.cost(lead)
        return lead, bisect_left(self.costs, self.costs[start] - left, system, start)

    def _whole_turns(self, lead: list[Part], first: int, start: int, stop: int) -> Window:
        """A window of `lead` and the turns from `first` to `stop`; those before `start` are only read."""
        header = (self.layout.later if lead else self.layout.first)[self.parts[first].role]
        head = [*self.layout.read(lead), *header]
        begin, end = self.places[first] + len(self._header(first)), self.places[stop]
        ids = np.concatenate([np.array(head, np.uint32), self.whole.ids[begin:end]])
        learn = np.concatenate([np.zeros(len(head), np.uint8), self.whole.learn[begin:end]])
        if first == start:
            learn[len(head) - len(header) : len(head)] = self.learned_header[self.parts[first].role]
        else:
            learn[: len(head) + self.places[start] - begin] = 0
        return Window(ids, learn)

    def _one_target(self, start: int, target: int) -> Iterator[Window]:
        """Windows of one target, which does not fit with the turns from `start` that lead to it."""
        layout = self.layout
        role, text, ids, _ = self.parts[target]
        context = self._context(start, target)
        ends = [layout.tokenizer.end_of_text] if role == ANSWERER else []
        names = heading_places(text) if layout.lists_headings else []
        row, kept = layout.begin(context, role, needs=len(ids) + len(ends))
        for part in kept:
            self.seen[part.number] = max(self.seen[part.number], len(part.ids))
        self.seen[target] = len(ids)
        learn = [0] * len(row)
        if self.learned_header[role]:
            header = len((layout.later if kept else layout.first)[role])
            learn[-header:] = [1] * header
        carried = layout.carry(context, role)
        done = characters = 0
        while len(row) + len(ids) - done + len(ends) > layout.size:
            room = layout.size - len(row)
            most = min(done + room, len(ids) - len(ends))  # the last window has one id at least
            stop = layout.cut(ids, done + room * 3 // 4, most)
            yield _window(row + ids[done:stop], learn + [1] * (stop - done))
            characters += len(layout.tokenizer.decode(ids[done:stop]))
            done = stop
            so_far = [name for place, name in names if place < characters]  # a space is before the text
            row = layout.go_on(carried, role, ids[max(0, done - layout.size // 4) : done], so_far)
            learn = [0] * len(row)
        new = ids[done:] + ends
        yield _window(row + new, learn + [1] * len(new))

    def _context(self, start: int, target: int) -> list[Part]:
        """What leads to the target: the turns since the one before it, or that one itself, and the system's message."""
        parts = self.parts
        own = parts[start:target] or parts[max(0, start - 1) : start]
        if start > 1 and parts[0].role == "system":
            return [*self.layout.shorten(parts[:1], self.layout.size // 4), *own]
        return own


def _window(ids: list[int], learn: Sequence[int]) -> Window:
    return Window(np.array(ids, np.uint32), np.array(learn, np.uint8))
