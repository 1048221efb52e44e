"""Prompts of models that were trained on turns: the same ids and the same answer as in transformers; what gives way."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import linnet
from linnet.errors import LinnetError, UsageError
from linnet.generate.engine import Model
from linnet.model.chat_template import read_template
from linnet.model.pretrained import save_model
from linnet.turns.template import CHAT, PAPERS, SUMMARIES, Template, Turn, segment_ids
from tests.generate.networks import scripted, shift
from tests.model.examples import TEXT, tiny, tokenizer

SENTENCES = "The linnet sings at dawn. It is a small bird. Nobody taught it! Did you hear it? "


def templated(template: Template | None = CHAT, **shape: int) -> Model:
    """A random model that never ends."""
    model = Model(tiny(**({"n_positions": 256} | shape)), tokenizer(), template=template)
    shift(model.network, model.tokenizer.end_of_text, by=-100.0)
    return model


def saved(folder: Path, model: Model) -> Path:
    folder.mkdir(exist_ok=True)
    save_model(folder, model.network, tokenizer=model.tokenizer, template=model.template)
    return folder


# --- equal to transformers ---------------------------------------------------------------------------------

ASKED: list[tuple[str, dict[str, Any], list[dict[str, str]]]] = [
    ("What sings?", {}, [{"role": "user", "content": "What sings?"}]),
    ("  a\n", {"system": "Be short."}, [("system", "Be short."), ("user", "  a\n")]),
    ("", {}, [("user", "")]),
    ("", {"messages": [("user", "Hi"), ("assistant", "Hello "), ("user", " and\n"), ("user", "you?")]}, []),
    ("", {"messages": [("system", ""), ("user", "日本"), ("assistant", None)]}, []),
]


def as_messages(pairs: Any) -> list[dict[str, str]]:
    return [pair if isinstance(pair, dict) else {"role": pair[0], "content": pair[1]} for pair in pairs]


@pytest.mark.parametrize("template", [CHAT, PAPERS, SUMMARIES], ids=["chat", "papers", "summaries"])
@pytest.mark.parametrize(("prompt", "options", "messages"), ASKED)
def test_a_saved_model_answers_as_it_does_in_transformers(template, prompt, options, messages, tmp_path):
    folder = saved(tmp_path / "model", templated(template))
    if "messages" in options:
        options = {"messages": as_messages(options["messages"])}
    ours = linnet.load(folder)
    assert ours.template == template
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = theirs.apply_chat_template(
        options.get("messages") or as_messages(messages), add_generation_prompt=True, return_tensors="pt"
    )
    ids = inputs["input_ids"]
    assert ours.encode_prompt(prompt, **options) == ids[0].tolist()
    written = network.generate(**inputs, do_sample=False, max_new_tokens=60)[0, ids.shape[1] :].tolist()
    result = ours.complete(prompt, temperature=0, max_new_tokens=60, **options)
    assert result.token_ids == written
    assert len(set(written)) > 3


@pytest.mark.parametrize("jinja_files", [True, False])
def test_a_template_survives_saving_by_transformers(jinja_files, tmp_path):
    folder = saved(tmp_path / "model", templated(PAPERS))
    again = tmp_path / "again"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.save_pretrained(again, save_jinja_files=jinja_files)
    assert (again / "chat_template.jinja").is_file() == jinja_files
    assert read_template(again) == (PAPERS, False)


def test_a_model_without_a_template_saves_none(tmp_path):
    folder = saved(tmp_path / "model", templated(None))
    assert read_template(folder) == (None, False)
    assert linnet.load(folder).encode_prompt("It") == [
        tokenizer().end_of_text,
        *tokenizer().encode("It"),
    ]


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_of_another_origin_is_not_executed(where, tmp_path, capsys):
    folder = saved(tmp_path / "model", templated(None))
    foreign = "{{ raise_exception('executed') }}"
    if where == "chat_template.jinja":
        (folder / where).write_text(foreign)
    else:
        config = json.loads((folder / where).read_text())
        (folder / where).write_text(json.dumps(config | {"chat_template": foreign}))
    model = linnet.load(folder)
    said = capsys.readouterr().err
    assert said.count("not executed") == 1
    assert str(folder) in said
    assert model.encode_prompt("It")[1:] == tokenizer().encode("It")
    model.generate("It", max_new_tokens=2, seed=0)
    assert capsys.readouterr().err == ""


def test_a_damaged_template_is_named(tmp_path):
    folder = saved(tmp_path / "model", templated(CHAT))
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(LinnetError, match=r"chat_template\.jinja cannot be read.*copy it again"):
        linnet.load(folder)


# --- what is read and what is shown ------------------------------------------------------------------------


def test_raw_takes_the_prompt_as_it_is():
    model = templated()
    assert model.encode_prompt("user: It", raw=True) == tokenizer().encode("user: It")
    plain = Model(model.network, model.tokenizer)
    options = {"temperature": 0, "max_new_tokens": 20}
    assert model.complete("It", raw=True, **options) == plain.complete("It", **options)


def test_the_space_at_the_seam_is_not_shown():
    model = scripted("  Hello you. ", prompt="Hi", template=CHAT)
    result = model.complete("Hi", temperature=0)
    assert result.text == "Hello you. "
    assert result.finish_reason == "stop"
    assert tokenizer().decode(result.token_ids) == "  Hello you. "
    pieces = list(model.stream("Hi", temperature=0))
    assert "".join(pieces) == result.text
    assert all(pieces)


def test_a_stop_text_counts_where_it_is_shown():
    assert scripted(" \nYes\nNo", template=CHAT).generate("", temperature=0, stop="\n") == "Yes"


def test_an_answer_may_be_empty():
    assert scripted(" ", template=CHAT).complete("", temperature=0).text == ""
    assert list(scripted(" ", template=CHAT).stream("", temperature=0)) == []


def test_a_templated_model_whose_window_is_full_moves_on():
    model = templated(n_positions=64)
    result = model.complete("Hi", temperature=0, max_new_tokens=200)
    assert len(result.token_ids) == 200


# --- user text never becomes a control token ---------------------------------------------------------------

PIECES = [
    "<|endoftext|>",
    "<|end",
    "of|>",
    "\nuser:",
    "\nassistant:",
    " a",
    "é",
    "日",
    "\n",
    "{{ x }}",
    "{% if",
    "0",
]


def test_control_strings_stay_characters():
    model, end = templated(n_positions=1024), tokenizer().end_of_text
    drawn = random.Random(7)
    for _ in range(300):
        system, user = ("".join(drawn.choices(PIECES, k=drawn.randint(1, 8))) for _ in range(2))
        ids = model.encode_prompt(user, system=system)
        assert ids.count(end) == 1
        assert ids[0] == end
        turns = [Turn("system", system), Turn("user", user)]
        assert ids == segment_ids(model.tokenizer, CHAT.prompt_segments(turns))[0]
        text = "".join(segment.text for segment in CHAT.prompt_segments(turns))
        assert model.tokenizer.decode(ids) == text


# --- what gives way ----------------------------------------------------------------------------------------


def read(model: Model, *args: Any, **options: Any) -> str:
    return model.tokenizer.decode(model.encode_prompt(*args, **options))


def test_a_prompt_that_leaves_room_is_whole():
    model = templated(n_positions=256)
    writing = model.start(SENTENCES, max_new_tokens=100)
    assert writing.asked_tokens == len(writing.prompt) <= 157
    assert SENTENCES.strip() in model.tokenizer.decode(writing.prompt)


@pytest.mark.parametrize("template", [CHAT, PAPERS, SUMMARIES], ids=["chat", "papers", "summaries"])
def test_a_long_prompt_is_shortened_at_a_sentence(template):
    model = templated(template)
    for title in ("", "On finches"):
        writing = model.start(20 * SENTENCES, system=title, max_new_tokens=1000)
        shown = model.tokenizer.decode(writing.prompt)
        assert 64 < len(writing.prompt) <= 256 // 2 + len(tokenizer().encode("\nassistant:")) + 1
        assert writing.asked_tokens > 600
        asked = [Turn("system", title), Turn("user", 20 * SENTENCES)]
        assert writing.asked_tokens == len(segment_ids(tokenizer(), template.prompt_segments(asked))[0])
        assert (f"{template.headers['system']} {title}\n" in shown) == bool(title)
        content = shown.split(template.headers["user"] + " ")[1].split("\n" + template.headers["assistant"])[
            0
        ]
        assert (20 * SENTENCES).startswith(content)
        assert content[-1] in ".!?"


def test_the_answer_that_is_wanted_has_room():
    model = templated()
    for wanted in (1, 50, 100):
        writing = model.start(20 * SENTENCES, max_new_tokens=wanted)
        assert len(writing.prompt) + wanted <= 256
        assert len(writing.prompt) > 256 // 2 - 40


@pytest.mark.parametrize(("reads", "has_end"), [("start", False), ("ends", True), ("spread", True)])
def test_a_summary_reads_what_its_training_read(reads, has_end):
    model = Model(tiny(n_positions=256), tokenizer(), template=SUMMARIES, reads=reads)
    article = "\n".join(f"Part {i} begins. And it goes on for some time here." for i in range(40))
    shown = read(model, article, max_new_tokens=100)
    assert "Part 0 begins." in shown
    assert ("Part 1 begins. And it goes on" in shown) == (reads == "start")
    assert any(f"Part {i} " in shown for i in range(30, 40)) == has_end


def test_load_knows_what_the_run_read(tmp_path):
    folder = saved(tmp_path / "model", templated(SUMMARIES))
    assert linnet.load(tmp_path).reads == "start"
    (tmp_path / "recipe.toml").write_text('[data]\nreads = "spread"\n')
    assert linnet.load(tmp_path).reads == linnet.load(folder).reads == "spread"


def test_a_long_conversation_loses_its_oldest_turns():
    model = templated(n_positions=128)
    messages = [{"role": "system", "content": "Be short."}]
    for i in range(20):
        messages += [
            {"role": "user", "content": f"Question {i}?"},
            {"role": "assistant", "content": f"No {i}."},
        ]
    messages.append({"role": "user", "content": "And the last?"})
    shown = read(model, messages=messages, max_new_tokens=60)
    assert shown.startswith("system: Be short.\n")
    assert shown.endswith("assistant: No 19.\nuser: And the last?\nassistant:")
    assert "Question 0?" not in shown


# --- mistakes ----------------------------------------------------------------------------------------------

HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("template", "prompt", "options", "message"),
    [
        (CHAT, "Hi", {"messages": HI}, "leave out prompt and system"),
        (CHAT, "", {"messages": HI, "raw": True}, "raw takes the prompt as it is"),
        (CHAT, "Hi", {"system": 7}, "system is 7"),
        (CHAT, "", {"messages": [{"role": "robot", "content": "x"}]}, "role 'robot'.*system, user"),
        (CHAT, "", {"messages": ["Hi"]}, "'Hi' is no message"),
        (CHAT, "", {"messages": [{"role": "user", "content": 3}]}, "content of a message is 3"),
        (CHAT, "Hi", {"continue_sections": True}, "recipe papers"),
        (None, "Hi", {"continue_sections": True}, "recipe papers"),
        (PAPERS, "Hi", {"continue_sections": True, "raw": True}, "raw takes the prompt as it is"),
        (None, "Hi", {"system": "x"}, "not trained on turns"),
        (None, "", {"messages": HI}, "not trained on turns"),
    ],
)
def test_mistakes(template, prompt, options, message):
    for method in ("generate", "stream", "complete", "start", "encode_prompt"):
        with pytest.raises(UsageError, match=message):
            getattr(templated(template), method)(prompt, **options)


def test_text_without_end_is_a_prompt_too():
    shown = read(templated(), "x" * 5000 + TEXT, max_new_tokens=100)
    assert shown.startswith("user: xxxxx")
    assert len(shown) > 100
