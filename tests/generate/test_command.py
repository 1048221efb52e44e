"""`linnet generate` with a model that was trained on turns."""

import json
from pathlib import Path
from typing import Any

import pytest

import linnet
from linnet.generate.engine import Model
from linnet.model.pretrained import save_model
from linnet.turns.template import CHAT, PAPERS, Template
from tests.commands import Command, runner
from tests.generate.networks import scripted, shift
from tests.model.examples import tiny, tokenizer


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return runner(monkeypatch, capfd, "generate")


def saved(folder: Path, model: Model) -> str:
    folder.mkdir()
    save_model(folder, model.network, tokenizer=model.tokenizer, template=model.template)
    return str(folder)


def never_ending(template: Template | None, **shape: int) -> Model:
    model = Model(tiny(**shape), tokenizer(), template=template)
    shift(model.network, model.tokenizer.end_of_text, by=-100.0)
    return model


def test_an_answer_is_printed_without_its_prompt_and_first_space(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", scripted(" It sings.", prompt="What?", template=CHAT))
    assert command(folder, "What?", "--temperature", "0") == (0, "It sings.\n", "")
    assert command(folder, "What?", "--temperature", "0", "--stream") == (0, "It sings.\n", "")
    report: dict[str, Any] = json.loads(command(folder, "What?", "--temperature", "0", "--json")[1])
    assert (report["text"], report["finish_reason"]) == ("It sings.", "stop")
    assert report["tokens"] == len(tokenizer().encode(" It sings."))


def test_system_title_and_raw(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(PAPERS, n_positions=256))
    model, options = linnet.load(folder), ("--temperature", "0", "--max-new-tokens", "12")
    wanted = model.generate("It sings.", system="On finches", temperature=0, max_new_tokens=12)
    for name in ("--system", "--title"):
        assert command(folder, "It sings.", name, "On finches", *options) == (0, wanted + "\n", "")
    wanted = model.generate("It sings.", raw=True, temperature=0, max_new_tokens=12)
    assert command(folder, "It sings.", "--raw", *options) == (0, wanted + "\n", "")
    code, _, said = command(folder, "It sings.", "--raw", "--title", "On finches")
    assert code == 2
    assert "raw takes the prompt as it is" in said


def test_a_prompt_that_is_shortened_is_counted(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(PAPERS, n_positions=128))
    prompt = "A bird sings. " * 40
    writing = linnet.load(folder).start(prompt, max_new_tokens=200)
    said = f"The prompt was shortened from {writing.asked_tokens} to {len(writing.prompt)} tokens, so that the answer"
    code, _, err = command(folder, prompt, "--seed", "1")
    assert code == 0
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert command(folder, "A bird.", "--seed", "1", "--max-new-tokens", "50")[2] == ""


def test_an_article_beyond_the_window(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(PAPERS, n_positions=96))
    words = ("--continue-sections", "--max-new-tokens", "300", "--seed", "1", "--json")
    code, out, err = command(folder, "A bird sings.", *words)
    assert (code, err) == (0, "")
    assert json.loads(out)["tokens"] == 300
    other = saved(tmp_path / "other", never_ending(CHAT))
    code, _, err = command(other, "Hi", "--continue-sections")
    assert code == 2
    assert "recipe papers" in err


def test_a_template_of_another_origin_is_said_once(command: Command, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(None))
    Path(folder, "chat_template.jinja").write_text("{{ 1 / 0 }}")
    code, out, err = command(folder, "The", "--max-new-tokens", "3", "--seed", "1", "--stream")
    assert code == 0
    assert out
    assert err.count("not executed") == err.count("\n") == 1


def test_an_article_goes_on_in_the_rows_of_its_training(tmp_path: Path) -> None:
    words = " ".join(f"Bird {i} sings at dawn and flies." for i in range(60))
    rows = [{"abstract": f"On bird {i}.", "article": f"{i} {words}"} for i in range(30)]
    (tmp_path / "papers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = linnet.train(
        "papers",
        run=tmp_path / "run",
        data={"source": str(tmp_path / "papers.jsonl"), "prepared": str(tmp_path / "prepared")},
        tokenizer={"name": "bpe", "vocab_size": 300},
        model={"init_from": "scratch", "n_layer": 1, "n_head": 1, "n_embd": 16, "n_positions": 256},
        train={"steps": 1, "batch_size": 1, "block_size": 96},
        sample={"prompts": []},
    )
    model = run.load()
    assert model.network.config.n_positions == 256
    shift(model.network, model.tokenizer.end_of_text, by=-100.0)
    writing = model.start("On linnets.", continue_sections=True, max_new_tokens=300, seed=1)
    for _ in writing.pieces():
        assert len(writing.row.ids) <= 96
    assert len(writing.tokens) == 300
    # Without the run's papers, and for a prompt that does not go on, it is the model's own window.
    (tmp_path / "run" / "environment.json").write_text("{}")
    other = run.load().start("On linnets.", continue_sections=True)
    for whole in (other, model.start("On linnets.")):
        assert whole.answer is not None
        assert whole.answer.layout.size == 257
