"""Where the sentences of a text end.

Why: a model stops after so many tokens, mostly in mid-sentence. Cutting at the last full stop breaks `3.14`,
`e.g.`, `Dr. Smith` and `J. R. R. Tolkien`.
How: each `.`, `!`, `?` and their like is a candidate, judged by what stands before it (an abbreviation, an initial,
a list number) and what follows (closing quotes, white space, a lower-case letter). While a text is still growing,
only candidates that no further text can change count, so a stream never shows what is cut later.
Doubtful cases (`vitamin B. Then`) count as no end: the text gets a sentence shorter, never a sentence broken.
"""

import re

# One end mark or several, then what closes: "Stop!" he said. The asterisk and the underscore are markdown's.
_MARKS = re.compile(r"[.!?…]+[\"'”’»)\]}*_]*|[。！？｡।؟][」』”’\"')）》】]*")
_WORD_STARTS_AFTER = re.compile(r"[\s\"'“‘«(\[{*_/—–-]")
_OPENING = "\"'“‘«([{*_—–-"
_CLOSING = "\"'”’»)]}*_"

# Never the end of a sentence: something belonging to them follows.
_ALWAYS_MORE = re.compile(
    "mrs?|ms|messrs|mme|drs?|prof|rev|fr|ste?|mt|gen|col|maj|capt|cmdr|lt|sgt|cpl|hon|pres|gov|sen|rep|"
    "vs|cf|viz|al|ca|approx|figs?|eqs?|vols?|pp|ch|sec|eds?|trans|ibid|op|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|thu|fri",
    re.IGNORECASE,
)
# "No. 5" and "art. 3", but "She said no."
_MORE_BEFORE_DIGITS = re.compile("nos?|art|para", re.IGNORECASE)
# e.g, i.e, U.S, a.m: the last dot follows. Initials are the shortest of these.
_DOTTED = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_LIST_NUMBER = re.compile(r"\d+|[ivx]+", re.IGNORECASE)


def last_sentence_end(text: str, *, start: int = 0, growing: bool = False) -> int:
    """Index just after the last whole sentence of `text` (its closing quotes included); `start`: there is none.

    `start`: an earlier result, from where to search. `growing`: more text may follow, so ends that this could
    undo do not count.
    Example: `Pi is 3.14. Dr. Who came, e.g. to tea. And th` -> 38, after `tea.`
    """
    for match in reversed(list(_MARKS.finditer(text, start))):
        if _ends_sentence(text, match, growing=growing):
            return match.end()
    return start


def split_sentences(text: str) -> list[str]:
    """The sentences of a paragraph, with the white space between them left out.

    >>> split_sentences("Dr. Who came. It was 3.14 p.m. then!")
    ['Dr. Who came.', 'It was 3.14 p.m. then!']
    """
    ends = [m.end() for m in _MARKS.finditer(text) if _ends_sentence(text, m, growing=False)]
    starts = [0, *ends]
    pieces = [text[start:stop].strip() for start, stop in zip(starts, [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def _ends_sentence(text: str, match: re.Match[str], *, growing: bool) -> bool:
    start, end = match.span()
    if text[start] in "。！？｡।؟":
        return not growing or end < len(text)
    rest = text[end:].lstrip()
    space = text[end : len(text) - len(rest)]
    if rest and not space:
        return False  # 3.14, linnet.py, U.S
    new_paragraph = space.count("\n") >= 2
    following = rest.lstrip(_OPENING)
    if growing and not new_paragraph and not following:
        return False  # a lower-case letter could come
    single = text[start:end].rstrip(_CLOSING) == "."
    if single and _belongs_to_word(text, start, rest=rest, new_paragraph=new_paragraph):
        return False
    return new_paragraph or not (following[:1].islower() or rest[:1] in tuple(".!?…"))


def _belongs_to_word(text: str, dot: int, *, rest: str, new_paragraph: bool) -> bool:
    """Whether the single full stop at `dot` is a part of the word before it: `Dr.`, `e.g.`, `J.`, `1.`"""
    word = _WORD_STARTS_AFTER.split(text[max(0, dot - 40) : dot])[-1]
    line = text[text.rfind("\n", 0, dot) + 1 : dot].strip()
    if line == word and _LIST_NUMBER.fullmatch(word):
        return True  # "1. First" at the start of a line
    if new_paragraph:
        return False
    if _MORE_BEFORE_DIGITS.fullmatch(word):
        return rest[:1].isdigit()
    return bool(_ALWAYS_MORE.fullmatch(word) or _DOTTED.fullmatch(word))
