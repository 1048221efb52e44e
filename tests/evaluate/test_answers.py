"""Final answers, ROUGE, and whether answers end: known values."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from linnet.errors import LinnetError
from linnet.evaluate.answers import final_answer, has_marker, same_answer
from linnet.evaluate.judge import exact_match, judge
from linnet.evaluate.questions import choose_questions, write_answers
from linnet.evaluate.rouge import rouge
from linnet.generate.engine import Model
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.tokenizer import Tokenizer, train_char
from tests.evaluate.stores import written_store


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = <<3+4=7>>7\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### $1,234.50.", "1234.5"),
        ("####-3", "-3"),
        ("#### 42 apples\n#### 43", "42"),
        ("#### 3/4", "3/4"),
        ("#### 70,000", "70000"),
        ("so \\boxed{12}, no: \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{ \\$5.00 }", "5"),
        ("It costs $3 and then $4.50.", "4.5"),
        ("from 10 to 007", "7"),
        ("minus -0.0", "0"),
        ("1e400 and infinity", "400"),
        ("no number at all", None),
        ("\\boxed{never closed 5", "5"),
        ("####", None),
        ("", None),
    ],
)
def test_final_answers(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_answers_are_the_same_as_numbers_and_none_is_never_right() -> None:
    assert same_answer("I say 1234.50", "#### $1,234.5")
    assert not same_answer("I say 1,2", "#### 12")
    assert not same_answer("nothing", "nothing")
    assert has_marker("#### 5")
    assert has_marker("\\boxed{5}")
    assert not has_marker("5 #### ")


def test_every_gsm8k_answer_is_found_and_is_its_own(shared_data: Path) -> None:
    import json

    lines = (shared_data / "math" / "gsm8k_test.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 1319
    for text in answers:
        assert has_marker(text)
        assert final_answer(text) == final_answer("The answer is " + text.rpartition("#### ")[2])
    assert exact_match([(text, text) for text in answers]) == 1


def test_exact_match_is_a_share_of_those_that_have_an_answer() -> None:
    pairs = [("#### 1", "it is 1"), ("#### 2", "it is 3"), ("#### 4", ""), ("no answer", "no answer")]
    assert exact_match(pairs) == pytest.approx(1 / 3)
    with pytest.raises(LinnetError, match="needs references with a final answer"):
        exact_match([("none", "none")])


def test_rouge_by_hand() -> None:
    """the cat sat / the cat ran away: 2 of 3 and of 4 words, 1 of 2 and of 3 pairs, a subsequence of 2."""
    scores = rouge([("the cat sat", "the cat ran away")])
    assert scores["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"] == pytest.approx(scores["rouge1"])
    both = rouge([("the cat sat", "the cat sat"), ("the cat sat", "dogs")])
    assert both == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}


def test_rouge_without_its_package_says_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(LinnetError, match=r"pip install 'linnet\[eval\]'"):
        rouge([("a", "a")])
    said: list[str] = []
    assert judge([("a", "a")], metrics=(), are_summaries=True, say=said.append) == {}
    assert "pip install" in said[0]


def test_the_measure_fits_the_data() -> None:
    numbers, words = [("#### 1", "1")], [("a song", "a song")]
    assert judge(numbers, metrics=(), are_summaries=False, say=print) == {"exact_match": 1}
    assert judge(words, metrics=(), are_summaries=False, say=print) == {}
    assert judge(words, metrics=(), are_summaries=True, say=print)["rougeL"] == 1
    asked = judge(numbers, metrics=("rouge", "exact-match"), are_summaries=False, say=print)
    assert set(asked) == {"exact_match", "rouge1", "rouge2", "rougeL"}
    assert judge([], metrics=(), are_summaries=True, say=print) == {}


ROWS = [[(f"q{n}?", False), (f"a{n}", True), ("more?", False), ("yes", True)] for n in range(7)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_char(iter(["0123456789?aqmoreyesx<|>"]))


def test_a_question_is_what_comes_before_the_first_learned_token(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    store = written_store(tmp_path / "store", ROWS, tokenizer=tokenizer)
    found = choose_questions(store, tokenizer=tokenizer, count=3)
    assert [tokenizer.decode(question.ids) for question in found] == ["q0?", "q2?", "q4?"]
    assert [question.reference for question in found] == ["a0", "a2", "a4"]
    assert all(question.whole and question.ids[0] == tokenizer.end_of_text for question in found)
    assert len(choose_questions(store, tokenizer=tokenizer, count=100)) == 7
    assert choose_questions(store, tokenizer=tokenizer, count=0) == []


def test_rows_without_a_question_are_passed_over(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [[("a", True)], ROWS[1], [("a", True)]]
    store = written_store(tmp_path / "store", rows, tokenizer=tokenizer)
    found = choose_questions(store, tokenizer=tokenizer, count=1)
    assert [question.reference for question in found] == ["a1"]


def test_the_later_windows_of_a_row_ask_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = written_store(tmp_path / "store", ROWS, tokenizer=tokenizer)
    rows = np.array([(1, 0, 3), (2, 3, 4)], [("id", "<u8"), ("first", "<i8"), ("windows", "<i4")])
    np.save(store.folder / "rows.npy", rows)
    found = choose_questions(store, tokenizer=tokenizer, count=9)
    assert [question.reference for question in found] == ["a0", "a3"]


def constant(tokenizer: Tokenizer, token: int) -> Model:
    """A model that always writes `token`."""
    network = GPT2(GPT2Config(tokenizer.vocab_size, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    torch.nn.init.zeros_(network.wte.weight)
    network.wte.weight.data[token, 0] = 1.0
    network.ln_f.weight.data.zero_()
    network.ln_f.bias.data = torch.tensor([1.0] + [0.0] * 7)
    return Model(network, tokenizer)


def test_an_answer_ends_by_end_of_text_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = written_store(tmp_path / "store", ROWS, tokenizer=tokenizer)
    questions = choose_questions(store, tokenizer=tokenizer, count=2)
    silent_model = constant(tokenizer, tokenizer.end_of_text)
    silent = list(write_answers(silent_model, questions, max_new_tokens=5, temperature=0.0))
    assert [(answer.text, answer.ended) for answer in silent] == [("", True)] * 2
    chatty_model = constant(tokenizer, tokenizer.encode("x")[0])
    chatty = list(write_answers(chatty_model, questions, max_new_tokens=25, temperature=0.0))
    assert [(answer.text, answer.ended) for answer in chatty] == [("x" * 25, False)] * 2
