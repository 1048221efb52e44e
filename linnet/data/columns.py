"""Which column of a data set holds what: found by the names that people use, or set in data.columns.

What   `find_columns(format, names, config)`: what a format needs (`question`, `answer`, `messages`, ...) -> the column.
Why    Published sets call the same thing question, instruction, prompt, problem or query; nobody should rename columns.
How    For each format a list of known layouts, the first that is complete wins; names are compared without case. What
       `data.columns` names is taken as it is. Else the error lists the columns and shows the line to write.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from linnet.config import ColumnsConfig
from linnet.errors import LinnetError

# Complete layouts of a question and its answer, as published sets have them: MetaMath has query and response, Open-R1
# has problem, solution and also a bare answer, Alpaca an instruction with an optional input.
_PAIRS = [
    ("question", "answer"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("problem", "solution"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "response"),
    ("question", "output"),
    ("question", "solution"),
    ("problem", "answer"),
    ("query", "answer"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("instruction", "answer"),
    ("instruction", "completion"),
    ("input", "output"),
]
_LAYOUTS: dict[str, list[dict[str, str]]] = {
    "text": [{"text": name} for name in ("text", "content")],
    "lines": [{"text": name} for name in ("text", "content")],
    "instruct": [{"question": question, "answer": answer} for question, answer in _PAIRS],
    "chat": [
        {"messages": name}
        for name in ("messages", "conversations", "conversation", "dialogue", "dialog", "turns")
    ],
    "papers": [
        {"article": article, "abstract": abstract}
        for abstract in ("abstract", "abstract_text", "summary")
        for article in ("article", "article_text", "full_text", "body", "text")
    ],
}
# What a row may have besides, and under which names.
_OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "text": {},
    "lines": {},
    "instruct": {"input": ("input", "context"), "system": ("system", "system_prompt")},
    "chat": {"system": ("system", "system_prompt")},
    "papers": {"title": ("title",), "sections": ("section_names",), "section_texts": ("sections",)},
}


def find_columns(
    format: str, names: Sequence[str], config: ColumnsConfig, *, where: str, later: Sequence[str] = ()
) -> dict[str, str]:
    """What `format` reads -> the name of its column; what is optional and missing is left out.

    Args:
        names: the columns that there are.
        where: the file, for the error.
        later: columns that only rows further down have: taken for what `names` lack, so that a few odd rows down there
            do not decide how all are read.

    Raises:
        LinnetError: a needed column is not found, or data.columns names one that is not there.

    >>> find_columns("instruct", ["id", "Question", "Answer"], ColumnsConfig(), where="x.csv")
    {'question': 'Question', 'answer': 'Answer'}
    """
    required = list(_LAYOUTS[format][0])
    everything = [*names, *later]
    chosen = _configured([*required, *_OPTIONAL[format]], everything, config, where=where)
    found = _complete(format, names, chosen) or _complete(format, everything, chosen)
    if not found:
        raise LinnetError(_missing(format, everything, config, where=where))
    groups = [_by_name(names), _by_name(later)]
    for what, candidates in _OPTIONAL[format].items():
        there = [by_name[name] for by_name in groups for name in candidates if name in by_name]
        if what not in found and there and there[0] not in found.values():
            found[what] = there[0]
    return found


def _by_name(names: Sequence[str]) -> dict[str, str]:
    """Names without case -> the first that is written so."""
    return {name.casefold(): name for name in reversed(names)}


def _complete(format: str, names: Sequence[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """The first layout of which all is there; empty where none is."""
    by_name = _by_name(names)
    for layout in _LAYOUTS[format]:
        found = {what: by_name[name] for what, name in layout.items() if name in by_name}
        found.update(chosen)
        if all(what in found for what in layout):
            return found
    return {}


def _configured(
    wanted: list[str], names: Sequence[str], config: ColumnsConfig, *, where: str
) -> dict[str, str]:
    """What data.columns sets."""
    values = config.model_dump()
    chosen = {what: values[what] for what in wanted if values.get(what)}
    for what, name in chosen.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            advice = f"did you mean {near[0]}?" if near else "name one of these."
            raise LinnetError(
                f"{where}: data.columns.{what}={name} is not among the columns {_list(names)}; {advice}"
            )
    return chosen


def _missing(format: str, names: Sequence[str], config: ColumnsConfig, *, where: str) -> str:
    required = list(_LAYOUTS[format][0])
    line = " ".join(f"data.columns.{what}={getattr(config, what) or 'NAME'}" for what in required)
    by_name = {name.casefold() for name in names}
    fits = [
        other
        for other in ("chat", "instruct", "papers", "lines")
        if other != format
        and any(set(layout.values()) <= by_name for layout in _LAYOUTS[other])
        and not any(getattr(config, what) for what in required)
    ]
    advice = f" (or data.format={fits[0]}, which they fit)" if fits else ""
    return (
        f"{where}: data.format={format} needs the {' and the '.join(required)}, which cannot be told from the "
        f"columns {_list(names)}; write {line}{advice}."
    )


def _list(names: Sequence[str]) -> str:
    if not names:
        return "(there are none)"
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
