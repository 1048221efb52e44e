"""Columns are found by the names that published sets use, or an error shows the line to write."""

import pytest

from linnet.config import ColumnsConfig
from linnet.data.columns import find_columns
from linnet.errors import LinnetError


def find(format: str, names: str, **config: str) -> dict[str, str]:
    return find_columns(format, names.split(), ColumnsConfig(**config), where="x.jsonl")


@pytest.mark.parametrize(
    ("format", "names", "expected"),
    [
        ("instruct", "question answer", {"question": "question", "answer": "answer"}),  # arxiv-math, GSM8K
        ("instruct", "Question Answer", {"question": "Question", "answer": "Answer"}),
        (  # Alpaca, whose `text` is the whole prompt
            "instruct",
            "instruction input output text",
            {"question": "instruction", "input": "input", "answer": "output"},
        ),
        (  # Dolly
            "instruct",
            "instruction context response category",
            {"question": "instruction", "input": "context", "answer": "response"},
        ),
        ("instruct", "prompt completion", {"question": "prompt", "answer": "completion"}),
        ("instruct", "problem solution answer messages", {"question": "problem", "answer": "solution"}),
        ("instruct", "prompt response", {"question": "prompt", "answer": "response"}),
        ("instruct", "query response type", {"question": "query", "answer": "response"}),  # MetaMath
        (  # OpenOrca
            "instruct",
            "id system_prompt question response",
            {"question": "question", "answer": "response", "system": "system_prompt"},
        ),
        ("instruct", "input output", {"question": "input", "answer": "output"}),
        (
            "chat",
            "prompt prompt_id messages",
            {"messages": "messages"},
        ),  # ultrachat_200k: prompt repeats a message
        ("chat", "id conversations system", {"messages": "conversations", "system": "system"}),  # ShareGPT
        (
            "papers",
            "article abstract section_names",
            {"article": "article", "abstract": "abstract", "sections": "section_names"},
        ),
        (
            "papers",
            "article_id article_text abstract_text labels section_names sections title",
            {
                "article": "article_text",
                "abstract": "abstract_text",
                "title": "title",
                "sections": "section_names",
                "section_texts": "sections",
            },
        ),
        ("text", "url text", {"text": "text"}),
        ("lines", "content", {"text": "content"}),
    ],
)
def test_known_layouts(format: str, names: str, expected: dict[str, str]) -> None:
    assert find(format, names) == expected


def test_what_is_set_is_taken() -> None:
    assert find("instruct", "q a question answer", question="q", answer="a") == {
        "question": "q",
        "answer": "a",
    }
    assert find("instruct", "q answer", question="q") == {"question": "q", "answer": "answer"}
    assert find("chat", "talk messages", messages="talk") == {"messages": "talk"}
    found = find("instruct", "question answer input about", input="about")
    assert found == {"question": "question", "answer": "answer", "input": "about"}


def test_what_belongs_to_another_format_is_not_looked_at() -> None:
    assert find("chat", "messages", question="gone") == {"messages": "messages"}


def test_what_cannot_be_mapped_lists_the_columns_and_the_line_to_write() -> None:
    with pytest.raises(LinnetError) as error:
        find("instruct", "frage antwort id")
    assert str(error.value) == (
        "x.jsonl: data.format=instruct needs the question and the answer, which cannot be told from the columns "
        "frage, antwort, id; write data.columns.question=NAME data.columns.answer=NAME."
    )
    with pytest.raises(
        LinnetError, match=r"write data\.columns\.question=frage data\.columns\.answer=NAME\.$"
    ):
        find("instruct", "frage antwort", question="frage")


def test_another_format_that_fits_is_named() -> None:
    with pytest.raises(LinnetError, match=r"\(or data\.format=chat, which they fit\)"):
        find("instruct", "messages")
    with pytest.raises(LinnetError, match=r"\(or data\.format=instruct, which they fit\)"):
        find("chat", "question answer")


def test_a_column_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(
        LinnetError, match=r"data\.columns\.answer=antwrt is not among .*did you mean antwort\?"
    ):
        find("instruct", "frage antwort", question="frage", answer="antwrt")


def test_no_columns_and_many() -> None:
    with pytest.raises(LinnetError, match=r"from the columns \(there are none\)"):
        find("chat", "")
    with pytest.raises(LinnetError, match=r"c18, c19, \.\.\.;"):
        find("chat", " ".join(f"c{i}" for i in range(30)))


@pytest.mark.parametrize(
    ("names", "later", "expected"),
    [
        (
            "question answer",
            "system_prompt",
            {"question": "question", "answer": "answer", "system": "system_prompt"},
        ),
        (
            "question answer context",
            "input",
            {"question": "question", "answer": "answer", "input": "context"},
        ),
        ("prompt response", "question answer", {"question": "prompt", "answer": "response"}),
        ("prompt id", "response", {"question": "prompt", "answer": "response"}),
    ],
)
def test_columns_of_later_rows_add_what_the_first_lack(
    names: str, later: str, expected: dict[str, str]
) -> None:
    config = ColumnsConfig()
    assert find_columns("instruct", names.split(), config, where="x", later=later.split()) == expected
