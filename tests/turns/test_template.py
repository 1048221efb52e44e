"""The template against transformers' apply_chat_template: the same ids for any messages."""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from linnet.errors import LinnetError
from linnet.tokenizer import END_OF_TEXT, Tokenizer, train_bpe, train_char
from linnet.turns.template import CHAT, PAPERS, SUMMARIES, Segment, Template, Turn, normalize, segment_ids
from tests.conftest import SHARED_DATA

ALPHABET = "aB1 .:?'\n\t\u00a0\u2028\x1c\x85é漢🙂<|>{}%#-"
CONTENTS = st.text(ALPHABET, max_size=12) | st.sampled_from(
    ["", "  ", "\n", "user:", "assistant: no", "{{ x }}", "{% if %}", "it's", " 're", "x\r\n"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": CONTENTS | st.none()}
    ),
    min_size=1,  # transformers refuses an empty list
    max_size=7,
)


TEMPLATES = {"chat": CHAT, "papers": PAPERS, "summaries": SUMMARIES}


@cache
def saved(kind: str, name: str, parent: Path) -> tuple[Tokenizer, Any]:
    """Our tokenizer, and transformers' of the folder that we save."""
    template, folder = TEMPLATES[name], parent / f"{kind}-{name}"
    if kind == "gpt2":
        if not SHARED_DATA.is_dir():
            pytest.skip("the gpt2 tokenizer is missing")
        tokenizer = Tokenizer.load(SHARED_DATA / "gpt2-tokenizer")
    elif kind == "bpe":
        text = "user: aB aB\nassistant: a 1 a 1\nassistant: it's it's . : ? ::\n\n\n  aB" * 20
        tokenizer = train_bpe(iter([text]), vocab_size=330)
    else:
        tokenizer = train_char(iter([ALPHABET, *template.headers.values(), "\r{ x }% if eruaint:no's"]))
    folder.mkdir()
    tokenizer.save(folder, n_positions=1024)
    (folder / "chat_template.jinja").write_text(template.chat_template(tokenizer.end_token), encoding="utf-8")
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


def turns_of(messages: list[dict[str, Any]]) -> list[Turn]:
    return [Turn(message["role"], message.get("content") or "") for message in messages]


def same_ids(ours: Tokenizer, theirs: Any, messages: list[dict[str, Any]], template: Template = CHAT) -> None:
    turns = turns_of(messages)
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt == segment_ids(ours, template.prompt_segments(turns))[0]
    whole = theirs.apply_chat_template(messages)["input_ids"]
    kept = normalize(turns)
    if kept and kept[-1].role == "assistant":
        assert whole == segment_ids(ours, template.segments(turns))[0]
    else:
        header = template.header("assistant", first=not kept)
        assert whole == prompt[: len(prompt) - len(ours.encode(header))]


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=MESSAGES)
def test_transformers_gives_the_same_ids(kind: str, messages: list[dict[str, Any]], folder: Path) -> None:
    ours, theirs = saved(kind, "chat", folder)
    same_ids(ours, theirs, messages)


@pytest.mark.parametrize("name", ["papers", "summaries"])
def test_papers_have_their_own_headers(name: str, folder: Path) -> None:
    ours, theirs = saved("gpt2", name, folder)
    template = TEMPLATES[name]
    messages = [
        {"role": "system", "content": "On finches"},
        {"role": "user", "content": "Finches sing.\nThey do."},
        {"role": "assistant", "content": "Introduction\nA finch is a bird."},
    ]
    same_ids(ours, theirs, messages, template)
    text = theirs.apply_chat_template(messages, tokenize=False)
    names = [template.headers[m["role"]] for m in messages]
    assert text == (
        f"<|endoftext|>{names[0]} On finches\n{names[1]} Finches sing.\nThey do."
        f"\n{names[2]} Introduction\nA finch is a bird.<|endoftext|>"
    )


def test_real_conversations_give_the_same_ids(shared_data: Path, folder: Path) -> None:
    ours, theirs = saved("gpt2", "chat", folder)
    with (shared_data / "chat" / "sgd_dev.jsonl").open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, 50):
            same_ids(ours, theirs, json.loads(line)["messages"])


def test_messages_without_content_and_with_parts(folder: Path) -> None:
    _, theirs = saved("gpt2", "chat", folder)
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant"}, {"role": "user", "content": "x"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|endoftext|>user: one \ntwo\nx\nassistant:"


def test_an_unknown_role_is_named(folder: Path) -> None:
    _, theirs = saved("gpt2", "chat", folder)
    with pytest.raises(jinja2.TemplateError, match=r"no role 'robot'.*system, user, assistant, tool"):
        theirs.apply_chat_template([{"role": "robot", "content": "x"}])
    with pytest.raises(LinnetError, match=r"no role 'robot'.*system, user, assistant, tool"):
        CHAT.segments([Turn("robot", "x"), Turn("assistant", "y")])


def test_what_is_learned() -> None:
    turns = [Turn("user", " Hi"), Turn("assistant", "Hello "), Turn("tool", "5"), Turn("assistant", "Five")]
    assert CHAT.segments([*turns, Turn("user", "and?")]) == [
        Segment("user:", False),
        Segment(" Hi", False),
        Segment("\nassistant:", False),
        Segment(" Hello", True, ends=True),
        Segment("\ntool:", False),
        Segment(" 5", False),
        Segment("\nassistant:", False),
        Segment(" Five", True, ends=True),
    ]
    assert [s.learn for s in CHAT.segments(turns, learn="all")] == [True] * 4 + [False] * 2 + [True] * 2
    assert CHAT.segments([Turn("user", "Hi"), Turn("assistant", " ")]) == []


def test_each_answer_ends_with_end_of_text_once() -> None:
    tokenizer = train_bpe(iter(["user: assistant: Hi Hello"]), vocab_size=300)
    turns = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Hi"), Turn("assistant", "Hello")]
    ids, learn = segment_ids(tokenizer, CHAT.segments(turns))
    ends = [flag for token, flag in zip(ids, learn, strict=True) if token == tokenizer.end_of_text]
    assert ends == [0, 1, 1]
    assert ids[-1] == tokenizer.end_of_text


@pytest.mark.parametrize("template", [CHAT, PAPERS, SUMMARIES])
def test_a_template_is_read_back(template: Template) -> None:
    assert Template.parse(template.chat_template(END_OF_TEXT)) == template


@pytest.mark.parametrize(
    "jinja", ["", "{{ messages }}", "{#- linnet: {broken} -#}", '{#- linnet: {"a": 1} -#}']
)
def test_other_templates_are_not_ours(jinja: str) -> None:
    assert Template.parse(jinja) is None
