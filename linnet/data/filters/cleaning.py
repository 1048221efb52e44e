"""Rules that clean a text: boilerplate, reference lists, what citations and formulas left behind.

What   Functions str -> str, one for each rule; `CLEANING` lists them by name in the order in which they run.
Why    `( @xcite )`, a licence and a list of references teach a model to write these.
How    Each looks for a mark first, such as "@" or "[", and gives back the same text where there is none. What a rule
       cannot be sure about stays: a line or a bracket too many costs less than a sentence too few.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_BLANKS = " \t\u00a0"
_SPACE = rf"[{_BLANKS}]*"

# --- boilerplate -----------------------------------------------------------------------------------------------------

_GUTENBERG_START = re.compile(r"(?im)^\s{0,3}\*{3}\s?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*$")
_GUTENBERG_END = re.compile(
    r"(?im)^\s{0,3}(?:\*{3}\s?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK|End of (?:the )?Project Gutenberg['’]?s? ).*$"
)
_YEAR = r"(?:1[89]|20)\d\d"
_LEGAL = re.compile(
    r"(?i)\s*\W{0,3}(?:"
    rf"copyright\s*(?:©|\(c\)|:|-|by)?\s*(?:{_YEAR}\b|©).*"
    rf"|(?:©|\(c\)\s*{_YEAR}|&copy;).*"
    r"|[^.]{0,150}\ball rights reserved\W*"
    r"|this (?:is an open[- ]access article|article is (?:distributed|licensed|published))"
    r".{0,200}(?:licen[cs]e|creative commons).*"
    r"|(?:this|our) (?:web ?site|site|page)[^.]{0,60} uses? cookies\b.*"
    r"|we (?:and our partners )?use cookies\b.*"
    r"|by continuing to (?:use|browse) (?:this|our) .*cookies.*"
    r"|(?:please )?click here (?:to|for)\b.{0,100}"
    r"|(?:produced by|e-text prepared by|transcribed (?:by|from)).{0,150}(?:gutenberg|distributed proofread|project).*"
    r")"
)
_MENU = re.compile(
    r"(?i)\s*\W{0,3}(?:(?:read|learn|view|show|see) more|click here|share(?: this)?(?: on \w+)?|tweet(?: this)?"
    r"|e-?mail(?: this)?|subscribe(?: now)?|sign (?:up|in)|log ?in|skip to (?:main )?content|back to top|advertisement"
    r"|privacy policy|cookie (?:policy|settings|preferences)|terms (?:of (?:use|service)|and conditions)"
    r"|accept (?:all )?cookies|related (?:articles|posts)|leave a (?:comment|reply))[\s>»›|:!]{0,4}"
)
_LEGAL_HINT = re.compile(
    r"(?i)copyright|©|\(c\)|&copy;|rights reserved|cookies|click here|licen[cs]|creative|pro[jo]"
)
_LEGAL_LONGEST = 400  # characters; a longer line is a paragraph that has more to say
_MENU_LINES = 3  # a text of fewer lines may consist of "Subscribe" alone, as a user's turn does


def without_boilerplate(text: str) -> str:
    """Without Project Gutenberg's header and licence, lines of copyright, licence and cookies, and words of a menu."""
    if "roject" in text or "PROJECT" in text:
        start = _GUTENBERG_START.search(text)
        end = _GUTENBERG_END.search(text, start.end() if start else 0)
        if start or end:
            text = text[start.end() if start else 0 : end.start() if end else len(text)].strip("\r\n")
    lines = text.splitlines(keepends=True)
    if len(lines) < _MENU_LINES and not _LEGAL_HINT.search(text):
        return text
    kept = [
        line
        for line in lines
        if not (
            len(line) <= _LEGAL_LONGEST
            and (_LEGAL.fullmatch(line.rstrip()) or (len(lines) >= _MENU_LINES and _MENU.fullmatch(line)))
        )
    ]
    return text if len(kept) == len(lines) else "".join(kept)


# --- references ------------------------------------------------------------------------------------------------------

_REFERENCES = re.compile(
    r"(?im)^[ \t]*(?:\d{1,2}\.?[ \t]*)?"
    r"(?:references(?: and notes)?|bibliography|literature cited|works cited|reference list)"
    r"[ \t]*:?[ \t]*\r?$"
)
_AFTER_REFERENCES = re.compile(
    r"(?i)\s*(?:appendix|acknowledge?ments?|supporting information|supplementary|figure legends?|tables?\b).{0,60}"
)
_ENTRY = re.compile(
    r"\s*(?:(?:\[\s?\d{1,3}\s?\]|\d{1,3}\.)\s+)?"  # [12] or 12.
    r"[^\W\d_][\w'’-]*,?\s(?:[A-Z]\.?[ -]?){1,3}(?:[,.(:]|and|&|et al|(?<=\.))"  # Sharma SK, or Sharma, S. K. and
    rf".*\b{_YEAR}\b.*"
)
_NUMBERED = re.compile(rf"\s*(?:\[\s?\d{{1,3}}\s?\]|\d{{1,3}}\.)\s.*(?:\b{_YEAR}\b|doi|http).*")
_ENTRIES = 5  # lines at the end of a text that make a list without a heading


def without_references(text: str) -> str:
    """Without the list of references: behind its heading if half of what follows looks like entries, or five or more
    entries at the end of the text. What follows a list under a heading of its own (an appendix) stays."""
    if text.count("\n") < 1:
        return text
    lines = text.splitlines(keepends=True)
    headings = [number for number, line in enumerate(lines) if len(line) < 60 and _REFERENCES.match(line)]
    for heading in headings[:-4:-1]:  # a text full of headings must not cost the square of its length
        behind = lines[heading + 1 :]
        stop = next(
            (n for n, line in enumerate(behind) if _AFTER_REFERENCES.fullmatch(line.strip())), len(behind)
        )
        full = [line for line in behind[:stop] if line.strip()]
        if full and 2 * sum(map(_is_entry, full)) >= len(full):
            return "".join(lines[:heading] + behind[stop:]).rstrip()
    stop = len(lines)
    while stop and (not lines[stop - 1].strip() or _is_entry(lines[stop - 1])):
        stop -= 1
    if sum(bool(line.strip()) for line in lines[stop:]) >= _ENTRIES:
        return "".join(lines[:stop]).rstrip()
    return text


def _is_entry(line: str) -> bool:
    return len(line) < 600 and bool(_ENTRY.fullmatch(line.rstrip()) or _NUMBERED.fullmatch(line.rstrip()))


# --- citations and formulas ------------------------------------------------------------------------------------------

_NUMBER = r"[1-9]\d{0,2}"
_MARK = rf"\[\s?{_NUMBER}(?:\s?[,;–—-]\s?{_NUMBER})*\s?\]"
_RUN = rf"{_MARK}(?:\s?(?:[,;–—&-]|and)?\s?{_MARK})*"
_MARKS = re.compile(rf"(?:{_RUN}|\((?:see )?{_RUN}\))(?!\w)")
# Before these words' number the marker is a noun of its sentence ("as shown in [12]"), or it is an interval.
_NOUN = re.compile(
    r"(?:(?i:\b(?:in|by|of|from|to|with|than|see|refs?\.?|references?|ci|interval|range|iqr))|[=∈:<>(]|^|\n)"
    r"[\s,)]*\Z"
)
_XCITE = re.compile(r"@xcite(?:\s?[,;–-]?\s?@xcite)*")
_XCITE_LEAD = re.compile(r"\b(?:in|by|see|from|of|with|to|e\.g\.|cf\.?|refs?\.?) ?\Z")
_XMATH = re.compile(r"@xmath\d*")
_LATEX = re.compile(
    r"\\documentclass\[(?:(?!\\end\{document\}|\\documentclass).)*\\end\{document\}", re.DOTALL
)
_NOTHING = rf"(?:{_SPACE}(?:[,;&–]|and|see|e\.g\.|cf\.))*{_SPACE}"
_HOLLOW = re.compile(rf"(?:\({_NOTHING}\)|\[{_NOTHING}\])(?=[\s.,;:!?)\]]|\Z)")


def without_citations(text: str) -> str:
    """Without `@xcite`, `[ 12 ]`, `[3-5], [7]` and the brackets that they leave; author and year are words and stay."""
    cleaned = text
    if "@xcite" in text:
        cleaned = _remove(_XCITE, cleaned, lead=_XCITE_LEAD)
    if "[" in text:
        cleaned = _remove(_MARKS, cleaned, keep=_is_noun_or_index)
    return _without_hollow(cleaned)


def without_formulas(text: str) -> str:
    """Without `@xmath0`, LaTeX documents amid the text and the brackets that they leave."""
    cleaned = text
    if "@xmath" in text:
        cleaned = _remove(_XMATH, cleaned)
    if "\\documentclass" in text:
        cleaned = _remove(_LATEX, cleaned)
    return _without_hollow(cleaned)


def _is_noun_or_index(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 20) : match.start()]
    if before and (before[-1].isalnum() or before[-1] in "_[]"):
        return True  # names[1]
    return match.group()[0] == "[" and bool(_NOUN.search(before))


def _without_hollow(text: str) -> str:
    return _remove(_HOLLOW, text, keep=_is_call) if "(" in text or "[" in text else text


def _is_call(match: re.Match[str]) -> bool:
    before = match.string[match.start() - 1 : match.start()]
    return not (before.isspace() or before in ("", "(", "["))  # f()


def _remove(
    pattern: re.Pattern[str],
    text: str,
    *,
    keep: Callable[[re.Match[str]], bool] | None = None,
    lead: re.Pattern[str] | None = None,
) -> str:
    """The text without the matches and the spaces before them, or behind them at the start of a line.

    keep: says of a match that it stays. lead: what goes with a match where it ends right before it.
    """
    pieces: list[str] = []
    at = 0
    for match in pattern.finditer(text):
        start, stop = match.span()
        if keep and keep(match):
            continue
        if lead and (word := lead.search(text, max(at, start - 12), start)):
            start = word.start()
        while start > at and text[start - 1] in _BLANKS:
            start -= 1
        if start == 0 or text[start - 1] == "\n":
            while stop < len(text) and text[stop] in _BLANKS:
                stop += 1
        pieces.append(text[at:start])
        at = stop
    return "".join([*pieces, text[at:]]) if at else text


CLEANING: dict[str, Callable[[str], str]] = {
    "boilerplate": without_boilerplate,
    "references": without_references,
    "citations": without_citations,
    "formulas": without_formulas,
}
