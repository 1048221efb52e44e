"""Rows of each format as turns, and the reason where a row does not fit."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from linnet.config import DataConfig
from linnet.data.formats import RowFormat, make_row_format
from linnet.data.rows import Unusable
from linnet.data.windows import Encoder
from linnet.errors import LinnetError
from linnet.tokenizer import train_char
from linnet.turns.template import CHAT, PAPERS, SUMMARIES, Turn


def row_format(format: str, first: Mapping[str, Any], **data: Any) -> RowFormat:
    return make_row_format(DataConfig(format=format, **data), [first], where="x.jsonl")  # type: ignore[arg-type]


QUESTIONS = row_format("instruct", {"question": "", "input": "", "answer": "", "system": ""})
CHATS = row_format("chat", {"messages": []})


def chat(*messages: tuple[str, Any]) -> list[Turn]:
    return CHATS.parse({"messages": [{"role": role, "content": content} for role, content in messages]})


def refused(row: RowFormat, values: Mapping[str, Any]) -> str:
    with pytest.raises(Unusable) as problem:
        row.parse(values)
    return str(problem.value)


# -- text and lines --------------------------------------------------------------------------------------------------


def test_a_line_stays_as_it_is() -> None:
    lines = row_format("lines", {"text": ""})
    assert lines.parse({"text": "  two  words \t"}) == [Turn("text", "  two  words \t")]
    assert lines.parse({"text": " \t"}) == lines.parse({"text": None}) == []
    assert lines.parse({"text": 5}) == [Turn("text", "5")]
    assert refused(lines, {"other": "x"}) == "the column text is missing"
    assert refused(lines, {"text": ["x"]}) == "text is a list, not a text"
    assert lines.template is None


def test_an_empty_file_of_lines_is_no_mistake() -> None:
    assert make_row_format(DataConfig(format="lines"), [], where="x.txt").columns == {"text": "text"}


# -- instruct --------------------------------------------------------------------------------------------------------


def test_question_input_answer() -> None:
    row = {"question": " Add. ", "input": "1 2\n", "answer": 3, "system": "Be brief."}
    assert QUESTIONS.parse(row) == [
        Turn("system", "Be brief."),
        Turn("user", "Add.\n1 2"),
        Turn("assistant", "3"),
    ]
    assert QUESTIONS.parse({"question": "Add.", "input": None, "answer": True}) == [
        Turn("user", "Add."),
        Turn("assistant", "true"),
    ]
    assert QUESTIONS.template == CHAT


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"question": "x", "answer": None}, "the answer is empty"),
        ({"question": "x", "answer": "  "}, "the answer is empty"),
        ({"question": "x"}, "the column answer is missing"),
        ({"answer": "x"}, "the question is empty"),
        ({"question": "x", "answer": ["y"]}, "answer is a list, not a text"),
        ({"question": {"a": 1}, "answer": "y"}, "question is an object, not a text"),
        (
            {"question": "x", "answer": "\ud83d"},
            "half a character, the lone surrogate U+D83D, which UTF-8 cannot write",
        ),
    ],
)
def test_rows_without_question_or_answer(values: dict[str, Any], reason: str) -> None:
    assert refused(QUESTIONS, values) == reason


def test_a_row_of_nothing_is_empty() -> None:
    assert QUESTIONS.parse({"question": "", "answer": " "}) == []
    assert chat() == chat(("user", " "), ("assistant", None)) == []


# -- chat ------------------------------------------------------------------------------------------------------------


def test_turns_are_normalized() -> None:
    turns = chat(("user", " a "), ("assistant", ""), ("user", "b"), ("assistant", "c"), ("user", "d"))
    assert turns == [Turn("user", "a\nb"), Turn("assistant", "c"), Turn("user", "d")]
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert chat(("assistant", parts)) == [Turn("assistant", "one\ntwo")]
    assert CHATS.parse({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}) == [
        Turn("assistant", "x")
    ]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("human", "user"),
        ("User", "user"),
        ("prompter", "user"),
        ("gpt", "assistant"),
        ("ChatGPT", "assistant"),
        ("bot", "assistant"),
        ("model", "assistant"),
        ("function", "tool"),
        ("observation", "tool"),
        ("system", "system"),
    ],
)
def test_names_of_roles(name: str, role: str) -> None:
    assert chat((name, "x"), ("assistant", "y"))[0].role == role


def test_sharegpt_and_json_in_a_text() -> None:
    row = row_format("chat", {"conversations": [], "system": ""})
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    expected = [Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello")]
    assert row.parse({"conversations": talk, "system": "Be kind."}) == expected
    assert row.parse({"conversations": json.dumps(talk)}) == expected[1:]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("[", "messages is a text that is no JSON"),
        (None, "messages is null, not a list of turns"),
        ({"role": "user"}, "messages is an object, not a list of turns"),
        (["Hi"], "turn 1 is not of the form {role, content} or {from, value}"),
        ([["user", "Hi"]], "turn 1 is not of the form {role, content} or {from, value}"),
        ([None], "turn 1 is not of the form {role, content} or {from, value}"),
        ([{"from": "human"}], "turn 1 is not of the form {role, content} or {from, value}"),
        ([{"role": "robot", "content": "x"}], "turn 1 has the unknown role 'robot'"),
        ([{"role": 5, "content": "x"}], "turn 1 has the unknown role 5"),
        ([{"role": ["a"], "content": "x"}], "turn 1 has the unknown role ['a']"),
        ([{"role": "user", "content": 5}], "the content of turn 1 is a int, not a text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 1 has a part that is not text"),
        ([{"role": "user", "content": ["x"]}], "turn 1 has a part that is not text"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}], "no assistant turn"),
    ],
)
def test_chats_that_cannot_be_used(messages: Any, reason: str) -> None:
    assert refused(CHATS, {"messages": messages}) == reason


def test_real_rows_are_all_usable(shared_data: Path) -> None:
    for format, name, count in (("instruct", "math/gsm8k_test", 1319), ("chat", "chat/sgd_dev", 2098)):
        rows = [json.loads(line) for line in (shared_data / f"{name}.jsonl").read_text("utf-8").splitlines()]
        row = row_format(format, rows[0])
        assert len([turns for turns in map(row.parse, rows) if turns]) == count


# -- all -------------------------------------------------------------------------------------------------------------


def test_templates_and_options() -> None:
    paper = {"article": "", "abstract": ""}
    assert row_format("papers", paper).template == PAPERS
    summaries = row_format("papers", paper, target="abstract", reads="spread", learn="all")
    assert (summaries.template, summaries.reads, summaries.learn) == (SUMMARIES, "spread", "all")
    assert pickle.loads(pickle.dumps(summaries)) == summaries


def test_the_text_that_a_tokenizer_learns_has_the_headers() -> None:
    row = {"question": "Hi", "answer": "Hello"}
    assert QUESTIONS.text(QUESTIONS.parse(row)) == "user: Hi\nassistant: Hello"
    lines = row_format("lines", {"text": ""})
    assert (lines.text([Turn("text", " x")]), lines.marks) == (" x", "")


def test_a_tokenizer_of_characters_learns_the_marks_of_any_row() -> None:
    row = row_format("papers", {"article": "", "abstract": ""})
    turns = row.parse({"article": "So\n" + "o" * 300, "abstract": "o"})
    encoder = Encoder(row, train_char(iter([row.text(turns), row.marks])), size=64)
    assert len(encoder([turns])[0].windows) > 1


def test_columns_of_later_rows_are_seen() -> None:
    first = [{"id": 1}, {"question": "x", "answer": "y"}]
    made = make_row_format(DataConfig(format="instruct"), first, where="x.jsonl")
    assert made.columns == {"question": "question", "answer": "answer"}
    with pytest.raises(LinnetError, match=r"x\.jsonl: data\.format=instruct needs"):
        make_row_format(DataConfig(format="instruct"), first[:1], where="x.jsonl")


def test_a_tokenizer_learns_from_all_turns() -> None:
    turns = [Turn("user", "Hi"), Turn("assistant", "Yes"), Turn("user", "\u03a9")]
    row = RowFormat("chat", {"messages": "messages"}, CHAT)
    assert row.text(turns) == "user: Hi\nassistant: Yes\nuser: \u03a9"


def test_a_file_without_rows_says_so() -> None:
    with pytest.raises(LinnetError, match=r"^x\.csv holds no rows; "):
        make_row_format(DataConfig(format="instruct"), [], where="x.csv")
