"""Papers as turns, and as windows: no token of an article is lost, and generation makes the same rows."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from linnet.config import DataConfig
from linnet.data.formats import RowFormat, make_row_format
from linnet.data.rows import Unusable
from linnet.data.windows import Encoder
from linnet.tokenizer import Tokenizer
from linnet.turns.excerpt import excerpt
from linnet.turns.layout import Layout, headings
from linnet.turns.sentences import split_sentences
from linnet.turns.template import SUMMARIES, Turn


def papers(first: dict[str, Any], **data: Any) -> RowFormat:
    return make_row_format(DataConfig(format="papers", **data), [first], where="x.jsonl")


PLAIN = {
    "article": "Birds.\nThey sing.",
    "abstract": " On birds. ",
    "section_names": "Intro\nEnd",
    "title": "Birds",
}
RAW = {
    "article_id": "1",
    "article_text": ["ignored ."],
    "abstract_text": ["<S> on birds . </S>", "<S> they sing . </S>"],
    "section_names": ["Introduction", "Empty", "Methods"],
    "sections": [["birds sing .", "often ."], [""], ["we listened ."]],
}


# -- rows ------------------------------------------------------------------------------------------------------------


def test_article_and_abstract_both_ways() -> None:
    there = [Turn("system", "Birds"), Turn("user", "On birds."), Turn("assistant", "Birds.\nThey sing.")]
    assert papers(PLAIN).parse(PLAIN) == there
    back = [Turn("system", "Birds"), Turn("user", "Birds.\nThey sing."), Turn("assistant", "On birds.")]
    assert papers(PLAIN, target="abstract").parse(PLAIN) == back


def test_the_raw_form_has_its_headings_as_lines() -> None:
    assert papers(RAW).parse(RAW) == [
        Turn("user", "on birds .\nthey sing ."),
        Turn("assistant", "Introduction\nbirds sing .\noften .\nMethods\nwe listened ."),
    ]
    unequal = RAW | {"section_names": ["Introduction"]}
    assert papers(RAW).parse(unequal)[-1] == Turn("assistant", "ignored .")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"abstract": " "}, "the abstract is empty"),
        ({"article": None}, "the article is empty"),
        ({"article": 5}, "article is neither a text nor a list of texts"),
        ({"abstract": ["x", 5]}, "abstract is neither a text nor a list of texts"),
    ],
)
def test_papers_that_cannot_be_used(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable) as problem:
        papers(PLAIN).parse(PLAIN | change)
    assert str(problem.value) == reason


def test_a_row_of_nothing_is_empty() -> None:
    assert papers(PLAIN).parse({"article": "", "abstract": None}) == []


def test_headings_are_short_lines_above_a_paragraph() -> None:
    below = "Word " * 30
    text = f"Introduction\n{below}\nIt ends here.\n{below}\nlower case\n{below}\nAbove a line\nshort\nLast\n{below}"
    assert headings(text) == ["Introduction", "Last"]
    assert (
        headings("x" * 61 + f"\n{below}")
        == headings(f"One two three four five six seven 8 nine\n{below}")
        == []
    )


# -- windows of real papers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "gpt2-tokenizer")


@pytest.fixture(scope="module")
def plos(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "papers" / "plos.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:12]]


def test_each_window_of_an_article_knows_where_it_is(gpt2: Tokenizer, plos: list[dict[str, Any]]) -> None:
    row = papers(plos[0])
    for values in plos:
        turns = row.parse(values)
        [encoded] = Encoder(row, gpt2, size=1025)([turns])
        learned = [window.ids[window.learn == 1].tolist() for window in encoded.windows]
        article = turns[-1].text
        assert [token for ids in learned for token in ids] == [*gpt2.encode(" " + article), gpt2.end_of_text]
        assert encoded.present_tokens == encoded.source_tokens
        for window, new in zip(encoded.windows, learned, strict=True):
            read = gpt2.decode(window.ids[window.learn == 0].tolist())
            assert read.startswith(f"title: {turns[0].text}\nabstract: {turns[1].text[:100]}")
            assert "\narticle:" in read
            assert len(new) >= 0.75 * 512 or new is learned[-1]
        # Cut where a paragraph or a sentence ends.
        pieces = [gpt2.decode(ids) for ids in learned]
        ends = [piece[-1] in ".?!)”" or after[0] == "\n" for piece, after in itertools.pairwise(pieces)]
        assert sum(ends) >= 0.9 * len(ends)


def test_a_further_window_lists_the_headings_and_repeats_the_text(
    gpt2: Tokenizer, plos: list[dict[str, Any]]
) -> None:
    row = papers(plos[0])
    found = 0
    for values in plos:
        [encoded] = Encoder(row, gpt2, size=1025)([row.parse(values)])
        so_far = ""
        for window in encoded.windows:
            read = gpt2.decode(window.ids[window.learn == 0].tolist())
            before, tail = read.split("\narticle:")
            if so_far:
                assert len(gpt2.encode(tail)) >= 128
                assert so_far.endswith(tail.lstrip("\ufffd"))  # it may begin inside a character
            sections = before.partition("\nsections: ")[2]
            assert "; ".join(headings(so_far)).endswith(sections)
            assert bool(sections) == bool(headings(so_far))
            found += bool(sections)
            so_far += gpt2.decode(window.ids[window.learn == 1].tolist())
    assert found > len(plos)


def test_what_the_windows_learn_is_the_article(gpt2: Tokenizer, plos: list[dict[str, Any]]) -> None:
    row = papers(plos[0])
    for values in plos[:4]:
        turns = row.parse(values)
        [encoded] = Encoder(row, gpt2, size=1025)([turns])
        so_far = ""
        for window in encoded.windows:
            so_far += gpt2.decode(window.ids[window.learn == 1].tolist())
        assert so_far.strip() == turns[-1].text


# -- what of an article is read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["start", "ends", "spread"])
def test_a_summary_reads_whole_sentences_of_a_full_row(
    gpt2: Tokenizer, plos: list[dict[str, Any]], reads: str
) -> None:
    row = papers(plos[0], target="abstract", reads=reads)
    for values in plos:
        title, article, abstract = row.parse(values)
        [encoded] = Encoder(row, gpt2, size=1025)([[title, article, abstract]])
        [window] = encoded.windows
        assert encoded.shortened
        assert window.ids[window.learn == 1].tolist() == [*gpt2.encode(" " + abstract.text), gpt2.end_of_text]
        assert 900 < len(window.ids) <= 1025
        read = gpt2.decode(window.ids[window.learn == 0].tolist())
        body = read.split("\narticle: ")[1].removesuffix("\nabstract:")
        chosen = [sentence for line in body.split("\n") for sentence in split_sentences(line)]
        all_of_it = [sentence for line in article.text.split("\n") for sentence in split_sentences(line)]
        places = [all_of_it.index(sentence) for sentence in chosen]
        if reads == "start":
            assert places == list(range(len(places)))
        elif reads == "ends":
            assert 0 in places
            assert len(all_of_it) - 1 in places
        else:
            firsts = {split_sentences(line)[0] for line in article.text.split("\n")}
            assert len(firsts & set(chosen)) > 0.9 * len(chosen)
            assert max(places) > 0.9 * len(all_of_it)


def test_spread_takes_the_first_sentences_evenly() -> None:
    text = "\n".join(f"First {i}. Second {i}." for i in range(8))

    def lengths(texts: Any) -> list[int]:
        return [1] * len(texts)

    assert excerpt(text, "spread", room=16, lengths=lengths) == "\n".join(f"First {i}." for i in range(8))
    few = excerpt(text, "spread", room=6, lengths=lengths)
    assert few == "First 0.\nFirst 2.\nFirst 5."
    more = excerpt(text, "spread", room=18, lengths=lengths)
    assert more == "\n".join(["First 0. Second 0.", *(f"First {i}." for i in range(1, 8))])
    assert excerpt(text, "ends", room=6, lengths=lengths) == "First 0. Second 0.\nSecond 7."
    assert excerpt(text, "ends", room=1, lengths=lengths) == ""
    assert excerpt("One.", "ends", room=9, lengths=lengths) == "One."


def test_a_prompt_for_a_summary_is_shortened_in_the_same_way(
    gpt2: Tokenizer, plos: list[dict[str, Any]]
) -> None:
    row = papers(plos[0], target="abstract", reads="spread")
    title, article, abstract = row.parse(plos[0])
    [encoded] = Encoder(row, gpt2, size=1025)([[title, article, abstract]])
    [window] = encoded.windows
    reply = len(gpt2.encode(" " + abstract.text)) + 1
    layout = Layout(SUMMARIES, gpt2, size=1025, reads="spread")
    assert layout.prompt([title, article], reply=reply) == window.ids[window.learn == 0].tolist()
