"""Rows of papers: title, abstract and article as turns.

What   `paper_turns(values, columns, target)`: to write the article from its abstract, or the abstract from its article.
Why    The same paper comes as two texts (scientific_papers on the hub), or as lists of sentences and sections (its raw
       files).
How    Where the sections are given as texts of their own, each gets its name as a line above it. Where only the names
       are given, nobody knows where a section begins, and the article stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from linnet.data.rows import Unusable
from linnet.turns.template import ANSWERER, Turn, normalize


def paper_turns(values: Mapping[str, Any], columns: Mapping[str, str], *, target: str) -> list[Turn]:
    """Turns of system (the title, where there is one), user and assistant; `[]` for an empty row.

    Raises:
        Unusable: the abstract or the article is missing or empty, or is no text.
    """
    # The raw files mark the sentences of an abstract so.
    abstract = re.sub(
        r"[^\S\n]*</?S>[^\S\n]*", "", _joined(values.get(columns["abstract"]), columns["abstract"])
    )
    article = _with_headings(values, columns) or _joined(values.get(columns["article"]), columns["article"])
    title = _joined(values.get(columns["title"]), columns["title"]) if "title" in columns else ""
    if not (abstract.strip() or article.strip()):
        return []
    for what, text in (("abstract", abstract), ("article", article)):
        if not text.strip():
            raise Unusable(f"the {columns[what]} is empty")
    read, written = (abstract, article) if target == "article" else (article, abstract)
    return normalize([Turn("system", title), Turn("user", read), Turn(ANSWERER, written)])


def _with_headings(values: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Each section below its name; "" where the row has no texts of sections."""
    texts = values.get(columns.get("section_texts", ""))
    names = values.get(columns.get("sections", ""))
    if isinstance(names, str):
        names = names.split("\n")
    if not isinstance(texts, list) or not isinstance(names, list) or len(texts) != len(names):
        return ""
    column = columns["section_texts"]
    sections = [
        (_joined(name, column), _joined(text, column)) for name, text in zip(names, texts, strict=True)
    ]
    return "\n".join(f"{name.strip()}\n{text}" for name, text in sections if text.strip())


def _joined(value: Any, column: str) -> str:
    """A text, or a list of sentences or paragraphs with a line for each."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(part.strip() for part in value if part.strip())
    raise Unusable(f"{column} is neither a text nor a list of texts")
