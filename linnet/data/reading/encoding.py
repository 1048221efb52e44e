"""What encoding is a file in that is not UTF-8? A guess, good enough to name in an error message.

Why    "invalid start byte" helps nobody; "it looks like Shift-JIS, convert it with iconv" does.
How    Decode a sample in each candidate and score its characters beyond ASCII: letters that sit in words as people
       write them count for a candidate, symbols and a capital inside a word count against it.
"""

from __future__ import annotations

from collections.abc import Callable

# Names that both Python and iconv know, with the first bytes of the double-byte codes in everyday use (0: no such).
# Of two with the same score the first is taken: Korean bytes are common ideographs in GB18030, not the other way.
_CANDIDATES: dict[str, tuple[int, int]] = {
    "EUC-KR": (0xB0, 0xC8),
    "EUC-JP": (0xB0, 0xCF),
    "SHIFT_JIS": (0x88, 0x97),
    "GB18030": (0xB0, 0xD7),
    "BIG5": (0xA4, 0xC6),
    "WINDOWS-1251": (0, 0),
    "KOI8-R": (0, 0),
    "WINDOWS-1253": (0, 0),
    "WINDOWS-1252": (0, 0),
    "WINDOWS-1250": (0, 0),
    "CP850": (0, 0),
    "CP866": (0, 0),
    "MACINTOSH": (0, 0),
}
_PYTHON_NAMES = {"MACINTOSH": "mac_roman", "EUC-KR": "cp949", "SHIFT_JIS": "cp932"}
_TYPOGRAPHY = set("«»“”‘’„–—…\u00a0°§、。「」『』・（），：；！？《》")


def guess_utf16(head: bytes) -> str:
    """UTF-16 or UTF-32 by byte order mark or by where the zero bytes lie; "" for neither.

    >>> guess_utf16(b"h\\0i\\0 \\0y\\0o\\0u\\0")
    'UTF-16LE'
    """
    for mark, name in (
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ):
        if head.startswith(mark):
            return name
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if len(head) >= 4 and max(even, odd) > 0.3 * len(head) / 2 and min(even, odd) < 0.05 * len(head) / 2:
        return "UTF-16LE" if odd > even else "UTF-16BE"
    return ""


def guess_encoding(sample: bytes) -> str:
    """The likeliest encoding of `sample`: "UTF-8" if nearly all of it is, "" if nothing fits."""
    if name := guess_utf16(sample):
        return name
    text = sample.decode("utf-8", errors="replace")
    good = sum(ord(c) > 127 for c in text) - text.count("\ufffd")
    if good > 4 * text.count("\ufffd"):
        return "UTF-8"
    scores = {name: _score(sample, name) for name in _CANDIDATES}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else ""


def _score(sample: bytes, name: str) -> float:
    """Mean plausibility of the characters beyond ASCII, -1 to 1."""
    python_name = _PYTHON_NAMES.get(name, name)
    for shift in range(4):  # The sample may begin and end inside a character.
        for end in range(4):
            try:
                text = sample[shift : len(sample) - end].decode(python_name)
                everyday = _everyday(python_name, *_CANDIDATES[name])
                return _score_text(text, everyday, kana=name in ("EUC-JP", "SHIFT_JIS"))
            except UnicodeDecodeError:
                continue
    return -1.0


def _everyday(python_name: str, first: int, last: int) -> Callable[[str], bool]:
    """Whether an ideograph is a common one: these encodings put the common ones first."""
    return lambda character: first <= character.encode(python_name)[0] <= last


def _score_text(text: str, everyday: Callable[[str], bool], *, kana: bool) -> float:
    total = count = 0.0
    latin = sum(c.isascii() and c.isalpha() for c in text)
    foreign = sum(not c.isascii() and c.isalpha() for c in text)
    for before, character in zip(" " + text, text, strict=False):
        if character.isascii():
            continue
        count += 1
        if "\u3041" <= character <= "\u30fe":  # kana
            total += 1 if kana else -1
        elif "\u3400" <= character <= "\ud7a3":  # ideographs, Hangul
            total += 1 if everyday(character) else -0.5
        elif character.isalpha() and character < "\u0590":
            # Accented Latin letters are rare among plain ones; Greek and Cyrillic letters stand among their own.
            at_home = latin >= foreign if character < "\u0370" else foreign > latin
            inside_a_word = before.isalpha() and before.islower() and character.isupper()
            total += -1 if inside_a_word or not at_home else 1 if character.islower() else 0.5
        elif character in _TYPOGRAPHY:
            total += 0.5
        else:
            total -= 1
    return total / count if count else -1.0
