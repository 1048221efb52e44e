"""Running text, or one example a line? A judgement of plain text by its lines.

Why    Nothing in a .txt says how it is to be cut, and the wrong cut teaches the wrong thing: a novel in lines ends in
       the middle of sentences, a list of jokes as running text runs on from one into the next.
How    Text that is wrapped goes on with a small letter in the next line; running text has blank lines between its
       paragraphs. A list has neither. The reasons are said, and the other way is shown.
"""

from __future__ import annotations

from itertools import groupby
from statistics import median

WRAPPED = 0.15  # share of lines that begin with a small letter, from which on a text is wrapped
BLANK = 0.03  # share of lines that are blank, from which on they separate paragraphs
LONG_LINE = 400  # characters: paragraphs of one line that are longer on average are prose
FEWEST_LINES = 4


def judge_lines(text: str) -> tuple[bool, str]:
    """(whether each line is an example, the reasons) for the beginning of a file.

    >>> judge_lines("A joke.\\nAnother one.\\nA third.\\nMore.\\n")[0]
    True
    """
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    full = [line for line in lines if line]
    if len(full) < FEWEST_LINES:
        few = "It is one line" if len(full) == 1 else f"It has {len(full)} lines"
        return False, f"{few}, too few for examples of their own: it is taken as running text."
    blank = 1 - len(full) / len(lines)
    small = sum(line[0].islower() for line in full) / len(full)
    middle = median(map(len, full))
    facts = (
        f"Half of its lines have at most {middle:,.0f} characters, {blank:.0%} are blank, {small:.0%} begin with a "
        "small letter"
    )
    if small >= WRAPPED:
        return False, f"{facts}: sentences go on in the next line, so it is taken as running text."
    if blank < BLANK:
        return True, f"{facts}: lines stand for themselves, so each line is taken as an example."
    blocks = [len(list(group)) for is_full, group in groupby(lines, key=bool) if is_full]
    if max(blocks) == 1 and middle < LONG_LINE:
        return (
            True,
            f"{facts}, and all lines stand alone between blank ones: each line is taken as an example.",
        )
    return False, f"{facts}: blank lines separate its paragraphs, so it is taken as running text."
