"""A report on the terminal.

What   `print_report(report)`: sections from the general to the particular, the first examples last, where the eye is.
Why    One look must tell what will be learned, what not, and what to type next.
How    Rich. Where there is no colour (a pipe, NO_COLOR) the examples have a margin that says learned or read. Text of
       the data is shown without control characters, which could recolour or rename a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linnet.look.guess import Guess
from linnet.look.report import LeftOut, Report, Sample
from linnet.look.words import (
    Line,
    bin_name,
    count_rows,
    drop_line,
    duplicate_line,
    excerpt,
    facts_of_counts,
    guess_lines,
    length_line,
    number,
    packing_line,
    short_place,
    shows_learned,
    source_lines,
)
from linnet.track.progress import printable
from linnet.turns.template import Example, Segment

BAR = 22  # characters of the longest bar
MOST_SHOWN = 1200  # characters of a segment; of a longer one beginning and end
SHADES = " ▏▎▍▌▋▊▉"
END = "⏹"


def print_report(report: Report, *, console: Console | None = None) -> None:
    """Print to standard output, or to `console`."""
    out = console or Console(highlight=False)
    out.print(_text(report.subject, "bold"), soft_wrap=True)
    if report.guess:
        _print_guess(out, report, report.guess)
    if sources := source_lines(report):
        _section(out, "Where it comes from", [_lines(sources)])
    if report.counts:
        _section(out, "What is learned", [_counts(report), _lines(facts_of_counts(report))])
    if report.lengths:
        _section(
            out,
            "How long the examples are",
            [_histogram(report), _lines([("", length_line(report.lengths))])],
        )
    if report.packing:
        _section(out, "Packed", [_lines([("", packing_line(report.packing, report.data_format))])])
    _print_left_out(out, report, report.left_out)
    _print_rows(out, report)
    _print_first(out, report)
    if report.command:
        out.print(Text.assemble("\nTrain on it: ", (printable(report.command), "bold")), soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style)


def _section(out: Console, title: str, parts: Iterable[Table | Text | Padding]) -> None:
    out.print()
    out.print(Text(title, "bold underline"))
    for part in parts:
        out.print(Padding(part, (0, 0, 0, 2), expand=False))


def _grid(*justify: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for one in justify:
        table.add_column(justify="right" if one == "right" else "left", overflow="fold")
    return table


def _lines(lines: Sequence[Line]) -> Table:
    """(name, sentence) in two columns; sentences alone where no line has a name."""
    named = any(name for name, _ in lines)
    table = _grid("left", "left") if named else _grid("left")
    for name, sentence in lines:
        table.add_row(*([_text(name, "dim")] if named else []), _text(sentence))
    return table


def _print_guess(out: Console, report: Report, guess: Guess) -> None:
    _section(out, "What it seems to be", [_lines(guess_lines(report))])
    if guess.columns:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for title in ("column", "type", "filled", "for example"):
            table.add_column(title, justify="right" if title == "filled" else "left")
        for column in guess.columns:
            cells = (column.name, column.types, f"{column.filled:.0%}", column.example)
            table.add_row(*map(_text, cells))
        out.print(Padding(table, (1, 0, 1, 2), expand=False))
    if guess.why:
        out.print(Padding(_text(guess.why), (0, 0, 0, 2), expand=False))
    for sentence in (guess.remedy, guess.otherwise):
        if sentence:  # The terminal wraps it, so that its command can be copied.
            out.print(_text(f"  {sentence}"), soft_wrap=True)


def _counts(report: Report) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    sides = [("", report.counts)]
    if report.training:
        sides = [("all", report.counts), ("to train on", report.training), ("held out", report.validation)]
    table.add_column("")
    for title, _ in sides:
        table.add_column(title, justify="right")
    for key in ("rows", "examples", "tokens", "learned_tokens", "bytes"):
        if key in report.counts:
            about = "about " if key in report.estimated else ""
            cells = [about + number(side.get(key, 0)) for _, side in sides]
            table.add_row(_text(key.replace("_", " ")), *cells)
    return table


def _histogram(report: Report) -> Table:
    lengths = report.lengths
    assert lengths is not None
    learned = shows_learned(report)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("examples", no_wrap=True)
    if learned:
        table.add_column("examples with so many learned", no_wrap=True)
    most = max(lengths.examples + (lengths.learned if learned else []))
    for index in range(len(lengths.examples)):
        cells = [_bar(lengths.examples[index], most, "cyan")]
        if learned:
            cells.append(_bar(lengths.learned[index], most, "green"))
        table.add_row(bin_name(lengths, index), *cells)
    return table


def _bar(value: int, most: int, style: str) -> Text:
    """A bar of eighths of characters, and its number."""
    eighths = round(8 * BAR * value / most) if most else 0
    eighths = max(eighths, 1) if value else 0
    bar = "█" * (eighths // 8) + (SHADES[eighths % 8] if eighths % 8 else "")
    return Text.assemble((bar, style), " " if bar else "", (number(value) if value else "·", "dim"))


# -- rows --------------------------------------------------------------------------------------------------------------


def _print_left_out(out: Console, report: Report, left: LeftOut) -> None:
    if left.dropped:
        table = _grid("right", "left")
        for rule, count in left.dropped.items():
            table.add_row(number(count), _text(rule, "bold"))
            for sample in left.dropped_samples.get(rule, []):
                table.add_row("", _sample(report, sample))
        _section(out, "Left out", [table])
    if left.changed:
        table = _grid("right", "left")
        for rule, count in left.changed.items():
            table.add_row(number(count), _text(rule, "bold"))
            for edit in left.changed_samples.get(rule, []):
                head = f"{edit.id}  {short_place(report, edit.place)}"
                parts = ((head, "dim"), "\n- ", (edit.before, "red"), "\n+ ", (edit.after, "green"))
                table.add_row("", Text.assemble(*(_printable(part) for part in parts)))
        _section(out, "Changed", [table])
    if left.quarantined:
        table = _grid("right", "left")
        for reason, count in list(left.reasons.items())[:8]:
            table.add_row(number(count), _text(reason, "bold"))
            for sample in left.quarantine:
                if sample.why == reason:
                    table.add_row("", _sample(report, sample))
        _section(out, f"Set aside, since {count_rows(left.quarantined)} cannot be used", [table])


def _sample(report: Report, sample: Sample) -> Text:
    head = "  ".join(part for part in (sample.id, short_place(report, sample.place)) if part)
    return Text.assemble((printable(head), "dim"), "  " if sample.text else "", printable(sample.text))


def _print_rows(out: Console, report: Report) -> None:
    if report.duplicates:
        parts: list[Table | Text] = [Text(duplicate_line(report))]
        table = _grid("left", "left")
        for copy, original in report.duplicates.pairs:
            table.add_row(_text(copy.why, "bold"), _sample(report, copy))
            table.add_row("", _sample(report, original))
        if report.duplicates.pairs:
            parts.append(table)
        _section(out, "Duplicates", parts)
    if report.strange:
        table = _grid("left", "left")
        for strange in report.strange:
            for index, sample in enumerate(strange.rows):
                cell = Text.assemble((sample.id, "bold"), "  ", (printable(sample.why), "cyan"))
                cell.append(f"  {printable(short_place(report, sample.place))}\n", "dim")
                table.add_row(
                    Text(strange.what if index == 0 else "", "bold"), cell.append(printable(sample.text))
                )
        _section(out, "The strangest rows", [table, Text(drop_line(report))])


def _print_first(out: Console, report: Report) -> None:
    if not report.first:
        return
    coloured = out.color_system is not None and not out.no_color
    out.print()
    title = Text("The first examples", "bold underline")
    if coloured:
        title = Text.assemble(
            title, "  (", ("learned", "green"), ", ", ("only read", "dim"), f", {END} is end-of-text)"
        )
    out.print(title)
    for index, example in enumerate(report.first, 1):
        out.print(Padding(Text(f"{index}", "bold"), (0, 0, 0, 2), expand=False))
        shown = _coloured(example) if coloured else _with_margin(example)
        out.print(Padding(shown, (0, 0, 0, 2), expand=False))


def _printable(part: str | tuple[str, str]) -> str | tuple[str, str]:
    return printable(part) if isinstance(part, str) else (printable(part[0]), part[1])


def _shown(segment: Segment) -> str:
    return printable(excerpt(segment.text, MOST_SHOWN)) + (END if segment.ends else "")


def _coloured(example: Example) -> Text:
    text = Text()
    for segment in example:
        text.append(_shown(segment), "green" if segment.learn else "dim")
    return text


def _with_margin(example: Example) -> Table:
    table = _grid("right", "left")
    for segment in example:
        shown = _shown(segment)
        table.add_row("learned │" if segment.learn else "read │", Text(shown.removeprefix("\n")))
    return table
