"""Where sentences end, and where they only seem to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.turns.sentences import last_sentence_end

# What stays of a text; | marks the cut. Without it the text has no whole sentence.
CASES = [
    "It rained.| Then the",
    "It rained.|",
    "It rained",
    "Really?!| Yes",
    "Stop!|\nNow",
    # decimals, versions, names of files and places on the net
    "It costs 3.14 now, and 2.7",
    "He came in 1987.| It was",
    "See linnet.py and example.com for",
    "It is 3.|",
    # abbreviations
    "Some birds, e.g. linnets, sing",
    "Some birds, i.e. Linnets and",
    "Birds.| Some, e.g. Linnets",
    "We met Dr. Smith and Mrs. Jones at St. Mary",
    "We met.| Dr. Smith and Prof. Jones vs. Mr. X",
    "He met Dr.",
    "Cats, dogs, etc. and more",
    "Cats, dogs, etc.| The rest",
    "see Fig. 3 and pp. 4",
    "Jones et al. Then",
    "in the U.S. Army",
    "at 5 p.m. on Monday",
    "See No. 5",
    "He said no.| Then",
    # initials
    "J. R. R. Tolkien and C. S. Lewis",
    "He read.| J. R. R. Tolkien",
    # ellipses
    "Wait... what",
    "Wait… what",
    "Wait...| What is",
    "Wait…| What is",
    "Well . . . then",
    # quotes and brackets after the mark
    'He said "Stop."| Then',
    "He said “Stop.”| Then",
    "‘It works.’| Then",
    "(It works.)| Then",
    '"Stop!" he said',
    "“Why?” asked the",
    'It ended.| "Now',
    "**Bold.**| Then",
    # lists
    "1. First",
    "List:\n2. Second one.| 3",
    "Done.|\n\n1. First",
    # paragraphs
    "The end.|\n\nand so",
    "at 5 p.m.|\n\nNext",
    # other scripts
    "これは文です。|そして",
    "「はい。」|そして",
    "यह है।| और",
    "Это так.| Потом",
    "это так. потом",
    # degenerate
    "",
    "...|",
    " ",
    "...and",
    "word .| Next",
]


@pytest.mark.parametrize("case", CASES)
def test_last_sentence_end(case):
    kept, bar, rest = case.partition("|")
    text = kept + rest
    assert text[: last_sentence_end(text)] == (kept if bar else "")


def test_the_example_of_the_docstring():
    assert last_sentence_end("Pi is 3.14. Dr. Who came, e.g. to tea. And th") == 38


WORDS = ["a", "B", "3", "I", "iv", "Dr", "e.g", "etc", " ", "  ", "\n", "\n\n"]
WORDS += [".", "..", "!", "?", "…", "。", '"', "”", "“", "(", ")", "*", "-"]


@given(st.lists(st.sampled_from(WORDS), max_size=14), st.lists(st.sampled_from(WORDS), max_size=6))
def test_what_counts_while_growing_is_never_undone(before, after):
    text, more = "".join(before), "".join(before + after)
    certain = last_sentence_end(text, growing=True)
    assert certain <= last_sentence_end(more)
    if certain:  # and the piece that was shown ends where a sentence of the longer text ends
        assert last_sentence_end(more[:certain] + more[certain:], growing=True) >= certain
        assert certain in all_ends(more)


@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_searching_from_an_earlier_end_finds_the_same(parts):
    text = "".join(parts)
    for length in range(len(text)):
        known = last_sentence_end(text[:length], growing=True)
        assert last_sentence_end(text, start=known) == last_sentence_end(text)


def all_ends(text: str) -> set[int]:
    from linnet.turns import sentences

    found = sentences._MARKS.finditer(text)
    return {m.end() for m in found if sentences._ends_sentence(text, m, growing=False)}
