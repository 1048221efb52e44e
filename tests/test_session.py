"""What a start of a training does around its loop."""

import json
import os
from pathlib import Path

import pytest

import linnet
from linnet.errors import LinnetError
from linnet.recipe import load_recipe
from linnet.run import RunFolder


def test_a_prompt_that_the_vocabulary_cannot_write_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"add {n} and {n}", "answer": str(2 * n)} for n in range(40)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = linnet.train(
        "math",
        data={"source": "rows.jsonl"},
        tokenizer={"name": "char"},
        model={"init_from": "scratch", "n_layer": 1, "n_embd": 16, "n_head": 1},
        train={"steps": 2, "eval_every": 1, "optimizer": "adamw"},
        sample={"prompts": ["add 1 and 1", "Wozu?"], "max_new_tokens": 2},
    )
    samples = [json.loads(line) for line in (run.dir / "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} == {"add 1 and 1"}
    said = capsys.readouterr().err
    assert said.count('"Wozu?" is left out') == 1
    assert 'it writes: "add 1 and 1 -> ' in said


def test_a_recipe_that_is_not_utf8_is_refused_in_words(tmp_path: Path) -> None:
    recipe = load_recipe("text", [os.fsdecode(b"data.source=caf\xe9.txt")])
    with pytest.raises(LinnetError, match=r'in source = "caf\?\.txt" something is not; rename the file'):
        RunFolder(tmp_path).write_recipe(recipe)
    assert list(tmp_path.iterdir()) == []
