"""Each rule with texts that it must change or drop, and texts that it must leave alone; real text; any text."""

import json
import pickle
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.config import FiltersConfig
from linnet.data.filters import Filters, Verdict
from linnet.data.filters.cleaning import CLEANING
from linnet.data.filters.judging import digit_share, repeated_share, symbol_share
from linnet.errors import UsageError
from linnet.recipe import load_recipe
from linnet.turns.template import Turn

ALL_CLEANING = FiltersConfig(boilerplate=True, references=True, citations=True, formulas=True)
PROSE = "The old man walked down to the harbour and looked at the boats that lay in the evening sun."


def cleaned(text: str, **rules: bool) -> str:
    verdict = Filters(FiltersConfig(**rules))([Turn("assistant", text)])
    assert verdict.changed == (tuple(rules) if verdict.turns[0].text != text else ())
    return verdict.turns[0].text


def dropped(text: str, **limits: object) -> str:
    return Filters(FiltersConfig(**limits))([Turn("text", text)]).dropped


def test_nothing_is_on_by_default() -> None:
    turns = [Turn("user", "yes @xcite [1]"), Turn("assistant", "%%%% 0000 0000 0000\nCopyright 2020 Us")]
    assert Filters(FiltersConfig())(turns) == Verdict(turns, "", ())


def test_an_empty_row_is_kept_for_others_to_judge() -> None:
    every = FiltersConfig(shortest=5, longest=9, symbols=0.1, digits=0.1, repetition=0.1, language=["en"])
    assert Filters(every)([]) == Verdict([], "", ())
    assert Filters(ALL_CLEANING)([Turn("assistant", "")]) == Verdict([Turn("assistant", "")], "", ())


def test_a_recipe_switches_rules_on_by_key() -> None:
    overrides = ["data.filters.language=en", "data.filters.longest=off", "data.filters.citations=true"]
    filters = load_recipe("scratch", overrides).data.filters
    assert (filters.language, filters.longest, filters.citations) == (["en"], "off", True)
    with pytest.raises(UsageError, match="symbols"):
        load_recipe("scratch", ["data.filters.symbols=1.5"])
    with pytest.raises(UsageError, match="longest"):
        load_recipe("scratch", ["data.filters.longest=0"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shown before [12].", "shown before."),
        ("shown before [ 12 , 14 - 16 ] .", "shown before ."),
        ("methods [1]–[3], [7] and [9] are", "methods are"),
        ("rise early ([22,35]). Thus", "rise early. Thus"),
        ("was found ( @xcite , @xcite ) .", "was found ."),
        ("a rate of 3 ( see @xcite ) was", "a rate of 3 was"),
        ("as proposed by @xcite ; then", "as proposed; then"),
        ("first\n[ ] second", "first\nsecond"),
        ("deaths ( , ; ) fell", "deaths fell"),
    ],
)
def test_citations_are_cut_with_what_they_leave(text: str, expected: str) -> None:
    assert cleaned(text, citations=True) == expected.replace("proposed;", "proposed ;")


@pytest.mark.parametrize(
    "text",
    [
        "as described in [12] and by [3]",  # a noun of the sentence
        "[10] proposed a model",
        "the interval [0, 1] and 95% CI [1, 5] and x = [1, 2]",
        "names[1] = f() + g(x)",
        "the matrix [1.5, 2.5] and [x, y]",
        "growth (Freeman and Gurdon 2002) was (Figure 1) seen (n = 5)",
        "the year [1998] was",
    ],
)
def test_brackets_that_are_no_citations_stay(text: str) -> None:
    assert cleaned(text, citations=True, formulas=False) == text


def test_formulas_are_cut() -> None:
    assert cleaned("where @xmath0 and ( @xmath12 ) are", formulas=True) == "where and are"
    latex = r"so \documentclass[12pt]{minimal} \begin{document}$$x$$\end{document} holds"
    assert cleaned(latex, formulas=True) == "so holds"
    kept = r"cost $5 and \begin{document} and user@xmail.org, f(x) = [x]"
    assert cleaned(kept, formulas=True) == kept


@pytest.mark.parametrize(
    "line",
    [
        "Copyright © 2019 Example Press. All rights reserved.",
        "(c) 2004 by the authors",
        "This is an open-access article distributed under the terms of the Creative Commons Attribution License.",
        "This website uses cookies to improve your experience.",
        "Click here to read the whole story",
        "Skip to main content",
        "Privacy Policy",
    ],
)
def test_lines_of_boilerplate_are_cut(line: str) -> None:
    assert cleaned(f"{PROSE}\n{line}\n{PROSE}", boilerplate=True) == f"{PROSE}\n{PROSE}"


@pytest.mark.parametrize(
    "text",
    [
        "Copyright law protects what authors write.\nIn 2008 it changed.\nCookies are baked for 12 minutes.",
        "She baked cookies.\nWe use cooking oil.\nPrint the page, then click the button.",
        "Subscribe",  # what a user says, not a menu
        "They carried the guns without\nloading.\nThen they had to wait for the\nadvertisement.",
        "(c) the third item\n(d) the fourth\n(e) the fifth",
        "This article is about the harbour.\nIt was published in 1990.\nRead more slowly.",
    ],
)
def test_sentences_that_look_like_boilerplate_stay(text: str) -> None:
    assert cleaned(text, boilerplate=True) == text


def test_project_gutenbergs_header_and_licence_are_cut(shared_data: Path) -> None:
    path = shared_data / "text" / "war_and_peace.txt"
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read()
    body = cleaned(text, boilerplate=True)
    assert "Gutenberg" not in body
    assert body.startswith("An Anonymous Volunteer")
    assert body.endswith("recognize a dependence of which we are not\r\nconscious.")
    assert body in text
    for path in (shared_data / "text" / "novels").glob("*.txt"):
        novel = path.read_text(encoding="utf-8-sig")
        assert cleaned(novel, boilerplate=True, references=False) == novel, path


REFERENCES = [
    "1. Sharma S, Kelly TK, Jones PA (2010) Epigenetics in cancer. Carcinogenesis 31: 27-36.",
    "2. Feinberg, A. P. and Tycko, B. The history of cancer epigenetics. Nat. Rev. Cancer 4, 143 (2004).",
    "[3] Jones PA. Functions of DNA methylation. Nat Rev Genet. 2012;13:484-92.",
    "Baylin SB, Jones PA (2011) A decade of exploring the cancer epigenome. Nat Rev Cancer 11: 726.",
    "Esteller M (2008) Epigenetics in cancer. N Engl J Med 358: 1148.",
]


@pytest.mark.parametrize("heading", ["References", "REFERENCES:", "7. Literature cited", "Bibliography"])
def test_a_list_of_references_is_cut(heading: str) -> None:
    text = "\n".join([PROSE, heading, "", *REFERENCES[:3]])
    assert cleaned(text, references=True) == PROSE
    assert cleaned("\n".join([PROSE, *REFERENCES]), references=True) == PROSE
    appendix = "\n".join([PROSE, heading, *REFERENCES, "Appendix A", PROSE])
    assert cleaned(appendix, references=True) == f"{PROSE}\nAppendix A\n{PROSE}"


@pytest.mark.parametrize(
    "text",
    [
        f"{PROSE}\nReferences\n{PROSE}\n{PROSE}",  # a section of that name
        "\n".join([PROSE, *REFERENCES[:3]]),  # three lines are no list
        "\n".join([*REFERENCES, PROSE]),  # not at the end
        "\n".join(f"{n}. Wash the {n} cups and dry them well." for n in range(1, 9)),
        "References",
    ],
)
def test_what_only_looks_like_references_stays(text: str) -> None:
    assert cleaned(text, references=True) == text


def test_length_is_of_the_whole_row() -> None:
    row = [Turn("user", "a" * 10), Turn("assistant", "b" * 9)]
    assert Filters(FiltersConfig(shortest=20))(row).dropped == ""
    assert Filters(FiltersConfig(shortest=21))(row).dropped == "shortest"
    assert Filters(FiltersConfig(longest=20))(row).dropped == ""
    assert Filters(FiltersConfig(longest=19))(row).dropped == "longest"


def test_shares() -> None:
    assert repeated_share("one two three\none two three\n") == pytest.approx(0.5)
    assert repeated_share("to be or not to be " * 30) > 0.9
    assert repeated_share(PROSE) == repeated_share("") == repeated_share("yes") == 0
    assert symbol_share("a+b=c") == pytest.approx(0.4)
    assert symbol_share("“Well,” she said — (slowly) 3.5: नमस्ते 你好，世界！") == 0
    assert digit_share("12 ab") == pytest.approx(0.4)
    assert symbol_share("") == digit_share("") == 0


def test_rows_over_a_limit_are_dropped_by_name() -> None:
    assert dropped("buy now " * 50, repetition=0.3) == "repetition"
    assert dropped("<|#|> {{@@}} ~~~", symbols=0.1) == "symbols"
    assert dropped("0.12 0.34 0.56 0.78", digits=0.2) == "digits"
    assert dropped(PROSE, repetition=0.01, symbols=0.01, digits=0.01) == ""


def test_language() -> None:
    pytest.importorskip("pycld2")
    filters = Filters(FiltersConfig(language=["en"]))
    german = "Der alte Mann ging zum Hafen hinunter und sah die Boote an, die in der Abendsonne lagen."
    chinese = "我们在厨房准备晚饭的时候，猫在沙发上睡觉。我想预订一张今晚两个人的桌子。"
    for text in (german, chinese):
        assert filters([Turn("text", text)]).dropped == "language"
        assert filters([Turn("text", "\x00\ud800 " + text)]).dropped == "language"
        assert filters([Turn("text", text)], clean_only=True).dropped == ""
    for text in (PROSE, "OK", "12 + 30 = 42, 7 * 6 = 42, 84 / 2 = 42", "", "\ud800" * 30, "\x00" * 30):
        assert filters([Turn("text", text)]).dropped == "", text
    assert Filters(FiltersConfig(language=["en", "de"]))([Turn("text", german)]).dropped == ""
    with pytest.raises(UsageError, match="'english'"):
        Filters(FiltersConfig(language=["english"]))


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycld2", None)
    with pytest.raises(UsageError, match=r"needs the library pycld2; install it"):
        Filters(FiltersConfig(language=["en"]))


def test_rows_are_cleaned_before_they_are_judged() -> None:
    row = [Turn("user", "Why?"), Turn("assistant", f"Because. {'@xcite ' * 20}")]
    assert Filters(FiltersConfig(symbols=0.05))(row).dropped == "symbols"
    verdict = Filters(FiltersConfig(symbols=0.05, citations=True))(row)
    assert verdict == Verdict([row[0], Turn("assistant", "Because. ")], "", ("citations",))


def test_a_row_without_an_answer_left_is_dropped_as_empty_but_kept_by_id() -> None:
    filters = Filters(FiltersConfig(citations=True))
    row = [Turn("user", "Who says so [3]?"), Turn("assistant", "( @xcite )")]
    assert filters(row).dropped == "empty"
    assert filters(row, clean_only=True) == Verdict(row, "", ())
    assert filters(row[:1]).dropped == ""  # had none before


def test_kept_rows_are_cleaned_and_not_dropped() -> None:
    filters = Filters(FiltersConfig(citations=True, shortest=1000))
    assert filters([Turn("text", "so it is [3].")]).dropped == "shortest"
    verdict = filters([Turn("text", "so it is [3].")], clean_only=True)
    assert verdict == Verdict([Turn("text", "so it is.")], "", ("citations",))


def test_filters_travel_to_workers() -> None:
    filters = pickle.loads(pickle.dumps(Filters(FiltersConfig(citations=True, digits=0.3))))
    assert filters([Turn("text", "so it is [3].")]).turns[0].text == "so it is."
    assert filters([Turn("text", "1234")]).dropped == "digits"


PIECES = [
    "[",
    "]",
    "(",
    ")",
    "[1]",
    "@xcite",
    "@xmath0",
    " ",
    "\n",
    ",",
    "in",
    "see",
    "©",
    "References",
    *REFERENCES[:2],
]
PIECES += [
    "*** START OF THIS PROJECT GUTENBERG EBOOK X ***",
    "End of Project Gutenberg's X",
    "Copyright 2020",
    "a",
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
any_texts = st.one_of(texts, st.text(st.characters(exclude_categories=())))


@given(any_texts)
@settings(deadline=None)
def test_cleaning_is_idempotent_and_takes_any_text(text: str) -> None:
    filters = Filters(ALL_CLEANING)
    (once,) = filters([Turn("assistant", text)]).turns
    again = filters([once])
    assert again.turns == [once]
    assert again.changed == ()
    assert len(once.text) <= len(text)
    assert all(rule("") == "" for rule in CLEANING.values())


@given(any_texts)
@settings(deadline=None)
def test_shares_are_shares_of_any_text(text: str) -> None:
    for share in (repeated_share, symbol_share, digit_share):
        assert 0 <= share(text) <= 1


def test_any_text_has_a_verdict() -> None:
    pytest.importorskip("pycld2")
    filters = Filters(FiltersConfig(language=["en"], symbols=0.5, digits=0.5, repetition=0.5, shortest=1))

    @given(any_texts)
    @settings(deadline=None)
    def judge(text: str) -> None:
        assert filters([Turn("text", text)]).turns == [Turn("text", text)]

    judge()


@pytest.mark.parametrize(
    "piece",
    [
        "[",
        "(",
        "[1,",
        "[1] ",
        "( , ",
        "@xcite ",
        " ",
        "\n",
        "References\n",
        "1. Smith J, 2010\n",
        "A B. ",
        "\\documentclass[",
    ],
)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    started = time.process_time()
    Filters(ALL_CLEANING)([Turn("text", piece * (200_000 // len(piece)))])
    assert time.process_time() - started < 5


def rows_of(shared_data: Path, name: str) -> list[list[Turn]]:
    """Real rows as turns: articles, questions, dialogues."""
    path = {"papers": "papers/plos.jsonl", "math": "math/gsm8k_test.jsonl", "chat": "chat/sgd_dev.jsonl"}[
        name
    ]
    with (shared_data / path).open(encoding="utf-8") as lines:
        values = [json.loads(line) for line in lines]
    if name == "papers":
        return [[Turn("user", row["abstract"]), Turn("assistant", row["article"])] for row in values]
    if name == "math":
        return [[Turn("user", row["question"]), Turn("assistant", row["answer"])] for row in values]
    return [[Turn(turn["role"], turn["content"]) for turn in row["messages"]] for row in values]


@pytest.mark.parametrize("name", ["papers", "math", "chat"])
def test_real_rows_survive_the_settings_that_docs_recommend(shared_data: Path, name: str) -> None:
    recommended = {
        "papers": FiltersConfig(
            shortest=500,
            repetition=0.3,
            symbols=0.1,
            digits=0.15,
            boilerplate=True,
            references=True,
            citations=True,
            formulas=True,
        ),
        "math": FiltersConfig(shortest=20, repetition=0.5),
        "chat": FiltersConfig(shortest=20, repetition=0.5, symbols=0.1, boilerplate=True),
    }
    rows = rows_of(shared_data, name)
    filters = Filters(recommended[name])
    verdicts = [filters(row) for row in rows]
    assert [verdict.dropped for verdict in verdicts if verdict.dropped] == []
    before = sum(len(turn.text) for row in rows for turn in row)
    after = sum(len(turn.text) for verdict in verdicts for turn in verdict.turns)
    assert after == before if name != "papers" else 0.98 * before < after < 0.995 * before
