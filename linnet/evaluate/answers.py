"""Is the final answer right? For data whose answers end in one: mathematics, mostly.

What   `final_answer` finds it, `same_answer` compares two.
Why    Two solutions of a problem share hardly a word; what can be compared is where they end.
How    `#### 42` (GSM8K) comes first, then the last `\\boxed{...}` (MATH), then the last number of the text. Numbers are
       compared as numbers: `$1,234.50` is `1234.5`.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_MARK = re.compile(r"####[ \t]*(\S[^\n]*)")
_BOXED = "\\boxed{"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"-?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


def has_marker(text: str) -> bool:
    """Whether the text says itself which its final answer is: `#### ...` or `\\boxed{...}`."""
    return _marked(text) is not None


def final_answer(text: str) -> str | None:
    """The final answer, normalized; None where there is neither marker nor number.

    >>> final_answer("She has 2 + 3 = 5 of them.\\n#### $1,234.50")
    '1234.5'
    """
    answer = _marked(text)
    if answer is None:
        numbers = _NUMBER.findall(text)
        answer = numbers[-1] if numbers else None
    return None if answer is None else normalize(answer)


def same_answer(written: str, reference: str) -> bool:
    """Whether both texts have a final answer, and the same one."""
    answer = final_answer(reference)
    return answer is not None and final_answer(written) == answer


def normalize(answer: str) -> str:
    """Without dollar signs, commas between thousands, outer spaces and a final dot; a number in its shortest form.

    A number with a unit behind it is the number: `42 apples` is `42`.
    """
    plain = _THOUSANDS.sub("", answer.replace("\\$", "").replace("$", "")).strip().rstrip(".").strip()
    first = plain.split(maxsplit=1)[0].rstrip(".,") if plain else ""
    try:
        number = Decimal(first)
    except InvalidOperation:
        return plain
    if not number.is_finite():
        return plain
    return format(number.normalize(), "f") if number else "0"


def _marked(text: str) -> str | None:
    """What stands behind the first `####`, or in the last `\\boxed{...}` whose braces close."""
    if found := _MARK.search(text):
        return found[1]
    begin = text.rfind(_BOXED)
    depth = 1
    for place in range(begin + len(_BOXED), len(text)) if begin >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + len(_BOXED) : place]
    return None
