"""Transcripts: what is a turn, the ids of transformers, what gives way, and a sentence for what cannot be answered."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import linnet
from linnet.errors import LinnetError, UsageError
from linnet.generate.engine import Model
from linnet.model.pretrained import save_model
from linnet.turns.template import CHAT, PAPERS, SUMMARIES, Template, Turn, normalize
from linnet.turns.transcript import parse_transcript, read_transcript
from tests.commands import Command, runner
from tests.generate.networks import scripted, shift
from tests.model.examples import tiny, tokenizer

PASTED = """\

System: Be short.
USER:   Which birds sing?
They should be small.

  user: is no header here, since the line begins with a space

assistant:
The linnet does: <|endoftext|>

and the wren.
User: Where?
Tool: {"place": "hedges"}
human: And when?
assistant:

"""
TURNS = [
    Turn("system", "Be short."),
    Turn(
        "user",
        "Which birds sing?\nThey should be small.\n\n"
        "  user: is no header here, since the line begins with a space",
    ),
    Turn("assistant", "The linnet does: <|endoftext|>\n\nand the wren."),
    Turn("user", "Where?"),
    Turn("tool", '{"place": "hedges"}'),
    Turn("user", "And when?"),
]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return runner(monkeypatch, capfd, "generate")


def saved(folder: Path, model: Model) -> Path:
    folder.mkdir()
    save_model(folder, model.network, tokenizer=model.tokenizer, template=model.template)
    return folder


def never_ending(template: Template | None, **shape: int) -> Model:
    model = Model(tiny(**({"n_positions": 512} | shape)), tokenizer(), template=template)
    shift(model.network, model.tokenizer.end_of_text, by=-100.0)
    return model


# --- what is a turn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_turns_of_a_pasted_text(newline: str, mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_bytes(mark + PASTED.replace("\n", newline).encode())
    assert read_transcript(str(path), CHAT) == TURNS


@pytest.mark.parametrize("template", [PAPERS, SUMMARIES], ids=["papers", "summaries"])
def test_the_headers_are_those_of_the_template(template: Template) -> None:
    system, user = template.headers["system"], template.headers["user"]
    text = f"{system} On finches\n{user.upper()} They sing.\nuser: in a tree\nAI: no turn\n"
    turns = [Turn("system", "On finches"), Turn("user", "They sing.\nuser: in a tree\nAI: no turn")]
    assert parse_transcript(text, template, name="talk.txt") == turns


def test_other_names_of_the_two_who_talk() -> None:
    text = "Human: Hi\nAI: Hello\nuser: You?\nBot: Fine\nHUMAN: Good"
    roles = [turn.role for turn in parse_transcript(text, CHAT, name="talk.txt")]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


contents = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1).map(
    lambda text: text.replace("\n", "\n ")  # no line of it can begin with a header
)
asked = st.lists(st.tuples(st.sampled_from(sorted(CHAT.headers)), contents), min_size=1)


@given(asked)
def test_what_is_written_as_turns_is_read_as_them(turns: list[tuple[str, str]]) -> None:
    wanted = normalize([*(Turn(*turn) for turn in turns), Turn("user", "Well?")])
    text = "\n".join(f"{CHAT.headers[role]} {content}" for role, content in [*turns, ("user", "Well?")])
    assert parse_transcript(text, CHAT, name="talk.txt") == wanted


# --- what cannot be answered -------------------------------------------------------------------------------------

REFUSED = {
    "": "talk.txt: the transcript is empty; write turns, each begun with one of "
    "system:, user:, assistant:, tool:.",
    " \n\n\t": "talk.txt: the transcript is empty",
    "user:\nassistant: \n": "talk.txt: the transcript is empty",
    "\n\nHello!\nuser: Hi": "talk.txt:3: 'Hello!' belongs to no turn; begin it, at the start of the line, with one of",
    "Only a text that is longer than what is shown": "talk.txt:1: 'Only a text that is longer than what is ...' "
    "belongs to no turn",
    "system: Be short.\ntool: 3": "talk.txt: the transcript asks nothing, since it has no turn 'user:'; add one.",
    "user: Hi\n\nASSISTANT: Hello\n\nthere\nuser:\n": "talk.txt:3: the transcript ends with what 'assistant:' says",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_answered_is_a_sentence(text: str) -> None:
    with pytest.raises(LinnetError) as refused:
        parse_transcript(text, CHAT, name="talk.txt")
    said = str(refused.value)
    assert said.startswith(REFUSED[text])
    assert said.endswith(".")
    assert "\n" not in said


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LinnetError, match=r"none\.txt cannot be read \(No such file"):
        read_transcript(str(tmp_path / "none.txt"), CHAT)
    with pytest.raises(LinnetError, match=r"cannot be read \(Is a directory\)"):
        read_transcript(str(tmp_path), CHAT)
    (tmp_path / "wide.txt").write_text("user: Hi", encoding="utf-16")
    with pytest.raises(LinnetError, match=r"wide\.txt is not UTF-8 \(byte 0\); convert it first"):
        read_transcript(str(tmp_path / "wide.txt"), CHAT)
    with pytest.raises(UsageError, match="not trained on turns, so it reads no transcript"):
        read_transcript(str(tmp_path / "wide.txt"), None)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_ids_are_those_of_transformers(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", never_ending(CHAT))
    (tmp_path / "talk.txt").write_text(PASTED)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    safe = [turn._replace(text=turn.text.replace("<|endoftext|>", "...")) for turn in TURNS]
    inputs = theirs.apply_chat_template(
        [{"role": role, "content": content} for role, content in safe],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    (tmp_path / "safe.txt").write_text(PASTED.replace("<|endoftext|>", "..."))
    ids = inputs["input_ids"][0].tolist()
    written = network.generate(**inputs, do_sample=False, max_new_tokens=20)[0, len(ids) :].tolist()
    words = (str(folder), "--temperature", "0", "--max-new-tokens", "20")
    report = command(*words, "--transcript", str(tmp_path / "safe.txt"), "--json").report
    assert report["token_ids"] == written
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "safe.txt").read_bytes())))
    assert command(*words, "--transcript", "-").out == report["text"] + "\n"

    # In the text of a user, or one that was pasted, a control token is plain characters.
    model = linnet.load(folder)
    messages = [{"role": role, "content": content} for role, content in TURNS]
    prompt = model.encode_prompt(messages=messages)
    assert prompt.count(model.tokenizer.end_of_text) == 2, "at the start, and behind the assistant's turn"
    said = model.complete(messages=messages, temperature=0, max_new_tokens=20).token_ids
    assert command(*words, "--transcript", str(tmp_path / "talk.txt"), "--json").report["token_ids"] == said


def test_stream_and_seed(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(CHAT))
    (tmp_path / "talk.txt").write_text(PASTED)
    words = (str(folder), "--transcript", str(tmp_path / "talk.txt"), "--max-new-tokens", "20")
    first = command(*words, "--seed", "1")
    assert first == command(*words, "--seed", "1", "--stream")
    assert (first.code, first.err) == (0, "")
    assert first.out != command(*words, "--seed", "2").out


def test_an_answer_ends(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", scripted(" At dawn.", prompt="When?", template=CHAT))
    (tmp_path / "talk.txt").write_text("User: When?\r\n\r\nAI:\r\n")
    assert command(str(folder), "--transcript", str(tmp_path / "talk.txt"), "--temperature", "0") == (
        0,
        "At dawn.\n",
        "",
    )


def test_turns_that_do_not_fit_are_left_out_from_the_front(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(CHAT, n_positions=256))
    lines = [f"user: What is {i} and {i}?\nassistant: It is {2 * i}." for i in range(10)]
    (tmp_path / "talk.txt").write_text("\n".join(["system: Be short.", *lines, "user: And 99?"]))
    words = (str(folder), "--transcript", str(tmp_path / "talk.txt"), "--max-new-tokens", "100", "--json")
    code, out, err = command(*words, "--temperature", "0")
    assert code == 0
    model = linnet.load(folder)
    turns = read_transcript(str(tmp_path / "talk.txt"), CHAT)
    assert len(turns) == 22
    messages = [{"role": role, "content": content} for role, content in turns]
    writing = model.start(messages=messages, max_new_tokens=100, temperature=0)
    assert writing.answer is not None
    left_out = writing.answer.left_out
    assert 0 < left_out < 21
    assert len(writing.prompt) + 100 <= 256
    recent = [messages[0], *messages[1 + left_out :]]
    assert writing.prompt == model.encode_prompt(messages=recent, max_new_tokens=100)
    assert err == (
        f"The prompt was shortened from {writing.asked_tokens} to {len(writing.prompt)} tokens, so that the answer "
        f"fits: {left_out} of 22 turns are left out.\n"
    )
    assert json.loads(out)["token_ids"] == writing.complete().token_ids


@pytest.mark.parametrize("words", [("Hi",), ("--system", "Be short."), ("--raw",)])
def test_a_transcript_is_the_whole_conversation(
    command: Command, tmp_path: Path, words: tuple[str, ...]
) -> None:
    code, out, err = command("anything", "--transcript", str(tmp_path / "talk.txt"), *words)
    assert (code, out) == (2, "")
    assert "leave out the prompt, --system and --raw" in err


def test_a_model_without_turns_reads_none(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(None))
    (tmp_path / "talk.txt").write_text(PASTED)
    code, out, err = command(str(folder), "--transcript", str(tmp_path / "talk.txt"))
    assert (code, out) == (2, "")
    assert err == (
        "linnet: This model was not trained on turns, so it reads no transcript: give its text as the prompt.\n"
    )
    folder = saved(tmp_path / "other", never_ending(CHAT))
    code, out, err = command(str(folder), "--transcript", str(tmp_path / "none.txt"))
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "none.txt cannot be read" in err
