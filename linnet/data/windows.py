"""Turns become examples that fit a row: ids, and for each whether it is learned.

What   `Encoder`: rows of turns -> `Encoded`, their windows and the counts of what was present.
Why    What does not fit must not be lost: each target token is learned exactly once, whatever the row's size.
How    Most rows fit, and take a short path. Of a longer one, windows take whole turns and carry the last ones (read) in
       at most half a row; a target that is longer than the row goes on in further windows, each with the shortened
       context and a repeated quarter row before the new part. Only where a target ends stands its end-of-text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from linnet.data.rows import Encoded, Window
from linnet.layout import Layout, Part, headings
from linnet.template import ANSWERER, Turn, answered, learns, normalize
from linnet.tokenizer import Tokenizer

if TYPE_CHECKING:
    from linnet.data.formats import RowFormat


class Encoder:
    """Rows of one format as windows of at most `size` ids."""

    def __init__(self, row_format: RowFormat, tokenizer: Tokenizer, *, size: int) -> None:
        """`size`: most ids of a window, block_size + 1. A document (`text`) stays one window of any length.

        Raises:
            LinnetError: a row has no room beside the template's headers.
        """
        self.tokenizer, self.size = tokenizer, size
        self.document = row_format.format == "text"
        self.learn = row_format.learn
        template = row_format.template
        self.layout = Layout(template, tokenizer, size=size, reads=row_format.reads) if template else None
        roles = list(template.headers) if template else []
        self._learned = {role: int(learns(role, self.learn)) for role in roles}
        self._learned_header = {role: int(self.learn == "all" and learns(role, self.learn)) for role in roles}

    def __call__(self, rows: Sequence[Sequence[Turn]]) -> list[Encoded]:
        """What becomes of each row; the contents of all are encoded in one call."""
        if self.layout is None:
            ids = iter(self.tokenizer.encode_batch([turn.text for turns in rows for turn in turns]))
            return [self._line([token for _ in turns for token in next(ids)]) for turns in rows]
        kept = [normalize(turns) for turns in rows]
        ids = iter(self.tokenizer.encode_batch([" " + text for turns in kept for _, text in turns]))
        return [self._row(turns, [next(ids) for _ in turns], self.layout) for turns in kept]

    # -- rows of targets -----------------------------------------------------------------------------------------

    def _row(self, turns: list[Turn], contents: list[list[int]], layout: Layout) -> Encoded:
        source = sum(map(len, contents))
        used = answered(turns)
        if not used:
            return Encoded([], source, 0, shortened=False)
        window = self._whole(used, contents, layout)
        if len(window.ids) <= self.size:
            present = source if len(used) == len(turns) else sum(map(len, contents[: len(used)]))
            return Encoded([window], source, present, shortened=False)
        parts = [
            Part(role, text, ids, i)
            for i, ((role, text), ids) in enumerate(zip(used, contents, strict=False))
        ]
        seen = [0] * len(parts)
        windows = list(self._windows(parts, layout, seen))
        shortened = any(count < len(part.ids) for count, part in zip(seen, parts, strict=True))
        return Encoded(windows, source, sum(seen), shortened=shortened)

    def _whole(self, turns: Sequence[Turn], contents: list[list[int]], layout: Layout) -> Window:
        """The row as one window, whatever its length."""
        end = self.tokenizer.end_of_text
        ids, learn = [end], [0]
        headers = layout.first
        for (role, _), content in zip(turns, contents, strict=False):
            header = headers[role]
            ids += header
            ids += content
            learn += [self._learned_header[role]] * len(header)
            learn += [self._learned[role]] * len(content)
            if role == ANSWERER:
                ids.append(end)
                learn.append(1)
            headers = layout.later
        return Window(ids, learn)

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
        whole = self._whole(
            [Turn(part.role, part.text) for part in [*context, *own]],
            [part.ids for part in [*context, *own]],
            layout,
        )
        carried = len(layout.read(context))
        whole.learn[:carried] = [0] * carried
        return whole

    def _long(
        self, parts: list[Part], start: int, target: int, layout: Layout, seen: list[int]
    ) -> Iterator[Window]:
        """Windows of one target that does not fit with what comes before it."""
        role, text, ids, _ = parts[target]
        context = self._long_context(parts, start, target, layout)
        ends = [self.tokenizer.end_of_text] if role == ANSWERER else []
        done = characters = 0
        while True:
            if done == 0:
                row, kept = layout.begin(context, role, needs=len(ids) + len(ends))
            else:
                so_far = headings(text[:characters]) if layout.lists_headings else ()
                row, kept = layout.go_on(context, role, ids[max(0, done - self.size // 4) : done], so_far)
            for part in kept:
                seen[part.number] = max(seen[part.number], len(part.ids))
            learn = [0] * len(row)
            if done == 0 and self._learned_header[role]:
                header = len(layout.later[role] if kept else layout.first[role])
                learn[-header:] = [1] * header
            room = self.size - len(row)
            last = len(ids) - done + len(ends) <= room
            stop = len(ids) if last else done + room
            if not last:
                most = min(stop, len(ids) - len(ends))
                stop = layout.cut(ids, done + room * 3 // 4, most)
            new = ids[done:stop] + (ends if last else [])
            yield Window(row + new, learn + [1] * len(new))
            if last:
                break
            characters += len(self.tokenizer.decode(ids[done:stop]))
            done = stop
        seen[target] = len(ids)

    def _long_context(self, parts: list[Part], start: int, target: int, layout: Layout) -> list[Part]:
        """What leads to the target: the turns since the one before it, or that one itself, and the system's message."""
        own = parts[start:target] or parts[max(0, start - 1) : start]
        if start > 1 and parts[0].role == "system" and own[:1] != parts[:1]:
            return [*layout.shorten(parts[:1], self.size // 4), *own]
        return own

    # -- lines ---------------------------------------------------------------------------------------------------

    def _line(self, ids: list[int]) -> Encoded:
        end = self.tokenizer.end_of_text
        if not ids:
            return Encoded([], 0, 0, shortened=False)
        if len(ids) + 2 <= self.size or self.document:
            windows = [Window([end, *ids, end], [0] + [1] * (len(ids) + 1))]
        else:
            windows = list(self._line_windows([*ids, end]))
        return Encoded(windows, len(ids), len(ids), shortened=False)

    def _line_windows(self, ids: list[int]) -> Iterator[Window]:
        """Each window repeats a quarter row of what comes before it."""
        end, done = self.tokenizer.end_of_text, 0
        while done < len(ids):
            repeated = min(done, self.size // 4)
            stop = min(len(ids), done + self.size - 1 - repeated)
            yield Window([end, *ids[done - repeated : stop]], [0] * (1 + repeated) + [1] * (stop - done))
            done = stop
