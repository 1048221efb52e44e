"""The sentences of a report, which the terminal and the page share.

Why    What a figure means is said once.
"""

from __future__ import annotations

import os
from pathlib import Path

from linnet.look.report import Lengths, Packing, Report

Line = tuple[str, str]
"""(name, sentence)"""

SHOWN_SOURCES = 5


def number(value: int) -> str:
    """12,345"""
    return f"{value:,}"


def size(count: int) -> str:
    """Bytes for people.

    >>> size(4_166_206)
    '4.2 MB'
    """
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} bytes"


def count_rows(count: int) -> str:
    """'1 row', '2 rows'"""
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def source_lines(report: Report) -> list[Line]:
    """The files, where the prepared data lies, and what preparing had to say; [] where the guess has said it."""
    if report.guess and len(report.sources) == 1 and not report.notes and not report.prepared:
        return []
    sides = [("held out", [s for s in report.sources if s.get("held_out")])]
    sides.insert(0, ("source", [s for s in report.sources if not s.get("held_out")]))
    lines = []
    for name, sources in sides:
        for index, source in enumerate(sources[:SHOWN_SOURCES]):
            where = source.get("path") or source.get("url") or source.get("name", "")
            lines.append((name if index == 0 else "", f"{where} ({size(source['bytes'])})"))
        if len(sources) > SHOWN_SOURCES:
            total = size(sum(source["bytes"] for source in sources))
            lines.append(("", f"and {len(sources) - SHOWN_SOURCES} more, {total} together"))
    if report.prepared:
        lines.append(("prepared", report.prepared))
    lines += [("note", note) for note in report.notes]
    return lines


def short_place(report: Report, place: str) -> str:
    """`place` without the folder that all local sources lie in: notes.jsonl:12."""
    folders = {str(Path(source["path"]).parent) for source in report.sources if "path" in source}
    if not folders:
        return place
    common = os.path.commonpath(folders)
    return place.removeprefix(common).lstrip("/") if common not in ("", "/", ".") else place


def facts_of_counts(report: Report) -> list[Line]:
    """What the counts mean."""
    counts = report.counts
    lines = []
    if "learned_tokens" in counts and counts["tokens"]:
        share = counts["learned_tokens"] / counts["tokens"]
        part = f"{share:.1%} of the tokens are learned, the rest is only read."
        lines.append(("", part if shows_learned(report) else "All of it is learned."))
    if report.kept_share is not None:
        kept = "All" if report.kept_share == 1 else f"{report.kept_share:.2%}"
        text = f"{kept} of the source's tokens are in an example"
        if windowed := counts.get("windowed", 0):
            text += f"; {count_rows(windowed)} did not fit and became several examples"
        if shortened := counts.get("shortened", 0):
            text += f"; in {count_rows(shortened)} what is only read was shortened"
        lines.append(("", text + "."))
    if not report.validation and report.training:
        lines.append(("", "Nothing is held out, so a training will not be evaluated."))
    if report.missing:
        lines.append(("", report.missing))
    return lines


def bin_name(lengths: Lengths, index: int) -> str:
    """'50 to 99'; the last one is open where there are longer ones."""
    last = index == len(lengths.edges) - 2 and lengths.most >= lengths.edges[-1]
    end = "more" if last else number(lengths.edges[index + 1] - 1)
    return f"{number(lengths.edges[index])} to {end}"


def shows_learned(report: Report) -> bool:
    """Whether the lengths of what is learned say more than those of the examples: not where all is learned."""
    return report.data_format not in ("text", "lines")


def length_line(lengths: Lengths) -> str:
    """Median and extremes."""
    return (
        f"Half of the examples have at most {lengths.median:,} tokens, 95 % at most {lengths.usual:,}, "
        f"the longest {lengths.most:,}."
    )


def packing_line(packing: Packing, data_format: str) -> str:
    """Rows, fill, and why they are so long."""
    if data_format == "text":
        return (
            f"Running text is cut into {packing.rows:,} blocks of {packing.block_size:,} tokens without padding; each "
            f"epoch cuts elsewhere ({packing.reason})."
        )
    return (
        f"{packing.rows:,} rows of {packing.block_size:,} tokens, {packing.fill:.1%} of them real and the rest padding "
        f"({packing.reason})."
    )


def duplicate_line(report: Report) -> str:
    """How many copies there are, and which key leaves them out."""
    found = report.duplicates
    assert found is not None
    among = f"Among {'all' if report.whole else 'the first'} {count_rows(report.looked_at)}"
    if not found.exact and not found.near:
        return f"{among} none is equal to another, or nearly so."
    keys = []
    if found.exact:
        keys.append("data.filters.exact_duplicates=true")
    if found.near:
        keys.append("data.filters.near_duplicates=0.8")
    return (
        f"{among} {found.exact:,} {'is' if found.exact == 1 else 'are'} equal to an earlier one and {found.near:,} "
        f"nearly equal; left out with {' '.join(keys)}."
    )


def drop_line(report: Report) -> str:
    """Which rows were looked at, if not all, and how one is left out."""
    where = "" if report.whole else f"These are of the first {count_rows(report.looked_at)}. "
    return (
        f"{where}To leave a row out: echo {report.strange[0].rows[0].id} >> drop.txt, and add data.drop=drop.txt "
        "(data.keep=FILE keeps rows whatever the filters say)."
    )


def guess_lines(report: Report) -> list[Line]:
    """Kind, size, encoding, format."""
    guess = report.guess
    assert guess is not None
    total = size(sum(source["bytes"] for source in report.sources))
    more = f" (the first of {len(report.sources):,} files)" if len(report.sources) > 1 else ""
    lines = [
        ("kind", f"{guess.kind}{more}, {total}"),
        ("encoding", guess.encoding),
        ("taken as", guess.format or ""),
    ]
    return [line for line in lines if line[1]]


def excerpt(text: str, most: int) -> str:
    """`text`, or its beginning and its end with the count of what lies between."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]} […{len(text) - head - tail:,} characters…] {text[-tail:]}"
