"""Turns become examples that fit a row: ids, and for each whether it is learned.

What   `Encoder`: rows of turns -> `Encoded`, their windows and the counts of what was present.
Why    What does not fit must not be lost: each target token is learned exactly once, whatever the row's size.
How    Most rows fit, and take a short path. Of a longer one, windows take whole turns and carry the last ones (read) in
       at most half a row; a target that is longer than the row goes on in further windows, each with the shortened
       context and the end of what came before, in half the row. Only where a target ends stands its end-of-text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from linnet.data.rows import Encoded, Window
from linnet.layout import Layout, Part, heading_places
from linnet.template import ANSWERER, Turn, answered, learns, normalize
from linnet.tokenizer import FlatIds, Tokenizer

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
            seen = [0] * len(parts)
            windows = list(self._windows(parts, self.layout, seen))
        shortened = any(count < len(part.ids) for count, part in zip(seen, parts, strict=True))
        return Encoded(windows, source, sum(seen), shortened=shortened)

    def _windows(self, parts: list[Part], layout: Layout, seen: list[int]) -> Iterator[Window]:
        """Windows of whole turns, and of parts of a turn that is longer; `seen` counts what is present of each turn."""
        targets = [part.number for part in parts if self._learned[part.role]]
        start = 0
        while targets:
            own = parts[start : targets[0] + 1]
            context = self._context(parts[:start], layout, room=self.size - 1 - layout.cost(own))
            if 1 + layout.cost(context) + layout.cost(own) > self.size:
                yield from self._long(parts, start, targets.pop(0), layout, seen)
                start = own[-1].number + 1
                continue
            stop = targets.pop(0) + 1
            used = 1 + layout.cost(context) + layout.cost(own)
            while targets and used + (more := layout.cost(parts[stop : targets[0] + 1])) <= self.size:
                used, stop = used + more, targets.pop(0) + 1
            for part in parts[start:stop]:
                seen[part.number] = len(part.ids)
            yield self._turns_window(context, parts[start:stop], layout)
            start = stop

    def _context(self, before: list[Part], layout: Layout, *, room: int) -> list[Part]:
        """Whole turns to carry, and the system's message, in at most half a row."""
        return layout.recent(before, min(room, self.size // 2)) if room > 0 else []

    def _turns_window(self, context: list[Part], own: list[Part], layout: Layout) -> Window:
        ids = layout.read([*context, *own])
        learn = [0] * len(layout.read(context))
        headers = layout.later if context else layout.first
        for part in own:
            learn += [self._learned_header[part.role]] * len(headers[part.role])
            learn += [self._learned[part.role]] * len(part.ids) + [True] * (part.role == ANSWERER)
            headers = layout.later
        return _window(ids, learn)

    def _long(
        self, parts: list[Part], start: int, target: int, layout: Layout, seen: list[int]
    ) -> Iterator[Window]:
        """Windows of one target that does not fit with what comes before it."""
        role, text, ids, _ = parts[target]
        context = self._long_context(parts, start, target, layout)
        ends = [self.tokenizer.end_of_text] if role == ANSWERER else []
        names = heading_places(text) if layout.lists_headings else []
        row, kept = layout.begin(context, role, needs=len(ids) + len(ends))
        for part in kept:
            seen[part.number] = max(seen[part.number], len(part.ids))
        learn = [0] * len(row)
        if self._learned_header[role]:
            header = len((layout.later if kept else layout.first)[role])
            learn[-header:] = [1] * header
        carried = layout.carry(context, role)
        done = characters = 0
        while True:
            room = self.size - len(row)
            last = len(ids) - done + len(ends) <= room
            stop = len(ids) if last else done + room
            if not last:
                most = min(stop, len(ids) - len(ends))
                stop = layout.cut(ids, done + room * 3 // 4, most)
            new = ids[done:stop] + (ends if last else [])
            yield _window(row + new, learn + [1] * len(new))
            if last:
                break
            characters += len(self.tokenizer.decode(ids[done:stop]))
            done = stop
            so_far = [name for place, name in names if place < characters]  # a space is before the text
            row = layout.go_on(carried, role, ids[max(0, done - self.size // 4) : done], so_far)
            learn = [0] * len(row)
        seen[target] = len(ids)

    def _long_context(self, parts: list[Part], start: int, target: int, layout: Layout) -> list[Part]:
        """What leads to the target: the turns since the one before it, or that one itself, and the system's message."""
        own = parts[start:target] or parts[max(0, start - 1) : start]
        if start > 1 and parts[0].role == "system" and own[:1] != parts[:1]:
            return [*layout.shorten(parts[:1], self.size // 4), *own]
        return own

    def _line_windows(self, ids: list[int]) -> Iterator[Window]:
        """Windows of a line; each repeats a quarter row of what comes before it."""
        end, done = self.tokenizer.end_of_text, 0
        while done < len(ids):
            repeated = min(done, self.size // 4)
            stop = min(len(ids), done + self.size - 1 - repeated)
            yield _window([end, *ids[done - repeated : stop]], [0] * (1 + repeated) + [1] * (stop - done))
            done = stop


def _window(ids: list[int], learn: Sequence[int]) -> Window:
    return Window(np.array(ids, np.uint32), np.array(learn, np.uint8))
