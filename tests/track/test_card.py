"""The model card: every figure found again in the run's files, valid metadata, nothing private, no file too damaged."""

import getpass
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open

import linnet
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import save_model
from linnet.recipe import load_recipe
from linnet.tokenizer import train_bpe
from linnet.track.card import BESIDE, card_of_repository, unseal, write_card
from linnet.track.card.lineage import base_model_of, license_of
from tests.loopback_hub import LoopbackHub
from tests.loopback_uploads import errors_of_card

ROWS = [{"question": f"Who sings {i}?", "answer": f"The linnet sings {i % 7}."} for i in range(80)]
TINY = {"steps": 6, "batch_size": 4, "eval_every": 2, "block_size": 64}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model as it lies in Hugging Face's cache, a run from it, and one from that; nobody writes there."""
    root = tmp_path_factory.mktemp("family")
    published = root / "hub" / "models--gpt2" / "snapshots" / "0123abc"
    published.mkdir(parents=True)
    tokenizer = train_bpe(iter([json.dumps(ROWS)]), vocab_size=300)
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    save_model(published, GPT2(config, seed=0), tokenizer=tokenizer)
    (published / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# GPT-2\n")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]))
    (root / "text.txt").write_text("The linnet sings in the gorse. " * 300)
    linnet.train(
        "text",
        run=root / "runs" / "first",
        data={"source": str(root / "text.txt"), "prepared": str(root / "text-store")},
        model={"init_from": str(published)},
        train={"steps": 2, "batch_size": 2, "block_size": 32},
        sample={"max_new_tokens": 2},
    )
    for steps in (4, 6):  # Stopped, and gone on with.
        linnet.train(
            "math",
            run=root / "runs" / "second",
            data={"source": str(root / "rows.jsonl"), "prepared": str(root / "rows-store")},
            model={"init_from": str(root / "runs" / "first")},
            train=TINY | {"steps": steps},
            sample={"max_new_tokens": 4},
        )
    return root


@pytest.fixture
def run(family: Path, tmp_path: Path) -> Path:
    """A copy of the second run."""
    shutil.copytree(family / "runs" / "second", tmp_path / "runs" / "second")
    return tmp_path / "runs" / "second"


def read_card(run: Path) -> str:
    return (run / "model" / "README.md").read_text(encoding="utf-8")


def details(card: str) -> dict[str, str]:
    """The list of technical details; the escapes of Markdown taken away."""
    lines = re.findall(r"^- \*\*(.+?)\*\*: (.+)$", card, re.M)
    return {name: re.sub(r"\\(.)", r"\1", words) for name, words in lines}


def test_every_figure_is_that_of_the_files(family: Path) -> None:
    run = family / "runs" / "second"
    card = read_card(run)
    said = details(card)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    held_out = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    best = min((loss, step) for step, loss in held_out.items() if step > 0)
    environment = json.loads((run / "environment.json").read_bytes())
    counts, left = environment["data"]["counts"], environment["data"]["held_out_counts"]
    with safe_open(run / "model" / "model.safetensors", framework="np") as weights:
        parameters = sum(math.prod(weights.get_slice(key).get_shape()) for key in list(weights.keys()))
    assert said["Parameters"].startswith(f"{parameters:,}, 1 layer, 2 heads, 16 wide, 64 positions")
    assert f"with {parameters:,} parameters" in card
    assert said["Training data"] == (
        f"{counts['rows']:,} rows, {counts['tokens']:,} tokens, {counts['learned_tokens']:,} of them learned"
    )
    assert said["Held-out data"] == f"{left['rows']:,} rows, {left['tokens']:,} tokens"
    tokens = steps[-1]["tokens"]
    epochs = tokens / (counts["tokens"] - counts["examples"])
    assert said["Epochs"] == f"{epochs:.2f}, 6 steps, {tokens:,} tokens read"
    assert said["Batch"] == f"4 rows a step, {tokens / 6:,.0f} tokens a step"
    assert said["Block size"] == "64 tokens"
    precision = environment["starts"][-1]["choices"]["precision"]["value"]
    assert said["Precision"] == f"{precision}, master weights in fp32"
    recipe = tomllib.loads((run / "recipe.toml").read_text())["train"]
    assert said["Optimizer"] == (
        f"{recipe['optimizer']}, peak learning rate {recipe['learning_rate']:g}, {recipe['schedule']}, "
        f"{recipe['warmup_steps']} warm-up steps, weight decay {recipe['weight_decay']:g}"
    )
    machine = environment["starts"][-1]["machine"]
    assert said["Hardware"].startswith(machine["cpu"] if machine["cuda"] == "none" else machine["cuda"])
    seconds = steps[-1]["time_s"]
    assert said["Training time"] == f"{round(seconds)} s, {tokens / seconds:,.0f} tokens/s, 2 starts"
    mean = sum(row["loss"] for row in steps[-20:]) / len(steps[-20:])
    assert said["Training loss"] == f"{mean:.4f} nats per token, the mean of the last 6 logged steps"
    measured = next(row["validation_tokens"] for row in rows if "validation_tokens" in row)
    assert said["Held-out loss"] == (
        f"{held_out[0]:.4f} before training, {best[0]:.4f} nats per token at step {best[1]} "
        f"(perplexity {math.exp(best[0]):.4g}), on {measured:,} tokens"
    )
    assert said["Changed between two starts"] == "train.steps"
    assert (
        said["Made with"]
        == f"Linnet {machine['linnet']}, torch {machine['torch']}, Python {machine['python']}"
    )
    assert said["Base model"] == "`first`, from `openai-community/gpt2`"
    assert said["Data set"] == "`rows.jsonl`"
    assert "`mit`, as the card of `first` has it." in card
    assert "Left out of the data: 1 (exact" in card, "the row that is there twice"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for sample in (row for row in samples if row["step"] == best[1]):
        assert (
            f"```text\n{sample['prompt']}\n```\n\nAnswer:\n\n```text\n{sample['text'].rstrip()}\n```" in card
        )
    assert "![Loss of each step and on held-out data](loss.png)" in card
    assert (run / "model" / "loss.png").read_bytes() == (run / "loss.png").read_bytes()


def test_a_time_of_a_minute_keeps_its_seconds(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row | {"time_s": 90.2}) + "\n" for row in rows))
    write_card(run, run / "model")
    assert "1 min 30 s" in details(read_card(run))["Training time"]


def test_one_of_a_thing_is_no_plural(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_bytes())
    environment["starts"][-1]["choices"]["batch_size"]["value"] = 1
    (run / "environment.json").write_text(json.dumps(environment))
    row = {"step": 1, "time_s": 1.2, "loss": 2.5, "tokens": 64}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    write_card(run, run / "model")
    said = details(read_card(run))
    assert said["Batch"] == "1 row a step, 64 tokens a step"
    assert said["Training time"].startswith("1 s, 53 tokens/s")
    assert said["Training loss"] == "2.5000 nats per token, the mean of the only logged step"


def test_a_training_that_diverged_says_so_and_from_which_step_the_samples_are(run: Path) -> None:
    rows = [{"step": step, "loss": 3.0 if step == 1 else None, "grad_norm": 1.0} for step in range(1, 7)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "samples.jsonl").write_text(json.dumps({"step": 5, "prompt": "a", "text": "b"}) + "\n")
    write_card(run, run / "model")
    card = read_card(run)
    assert "What it wrote at step 5, not chosen by hand" in card
    assert "- Its training diverged: " in card
    assert details(card)["Training loss"].endswith(
        "the mean of the last 6 logged steps without 5 that were not finite"
    )
    (run / "samples.jsonl").write_text(json.dumps({"step": 0, "prompt": "a", "text": "b"}) + "\n")
    write_card(run, run / "model")
    assert "What it wrote" not in read_card(run), "only before training, as of a run that was stopped early"
    assert "![Loss of each step](loss.png)" in card, "nothing was measured on held-out data"


def test_a_run_has_the_name_by_which_it_is_called(run: Path) -> None:
    """A link's own, not that of the folder to which it leads; a parent's where the path ends with model/."""
    link = run.with_name("best")
    link.symlink_to(run)
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(
        re.sub(r"^init_from = .*", 'init_from = "/a/first/model"', recipe, flags=re.M)
    )
    environment = json.loads((run / "environment.json").read_bytes())
    environment["parent"] |= {"init_from": "/a/first/model/"}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "model" / "README.md").unlink()
    write_card(link, link / "model")
    card = read_card(run)
    assert "\n# best\n" in card
    assert 'name = "runs/best/model"' in card
    assert "made from `first` (" in card
    assert "model.init_from=first " in card
    (run / "model" / "README.md").unlink()
    run = run.rename(run.parent.parent / "-x")
    write_card(run, run / "model")
    assert 'name = "path/to/model"' in read_card(run), "-x/model would be taken for an option"


def test_the_metadata_is_valid(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = family / "runs" / "second"
    card = ModelCard.load(run / "model" / "README.md")
    data = card.data
    assert errors_of_card(read_card(run)) == []
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["gpt2", "linnet", "math"]
    assert (data.base_model, data.license) == ("openai-community/gpt2", "mit")
    assert (data.language, data.datasets) == (None, None), "not known, so not said"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min(row["validation_loss"] for row in rows if row.get("validation_loss") and row["step"] > 0)
    loss, perplexity = data.eval_results
    assert (loss.metric_type, loss.metric_value) == ("loss", round(best, 4))
    assert (perplexity.metric_type, perplexity.metric_value) == ("perplexity", float(f"{math.exp(best):.4g}"))
    assert (loss.task_type, loss.dataset_name, loss.dataset_split) == (
        "text-generation",
        "rows.jsonl",
        "held-out",
    )
    from huggingface_hub import constants

    with LoopbackHub(tmp_path) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        card.validate()
    assert hub.requests == ["POST /api/validate-yaml"]


def test_data_sets_of_the_hub_and_languages_are_in_the_metadata(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_bytes())
    environment["data"]["sources"] = [{"path": "hf:someone/birds/data/train-0.parquet", "bytes": 1}] * 2
    (run / "environment.json").write_text(json.dumps(environment))
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace("language = []", 'language = ["en", "de"]'))
    write_card(run, run / "model")
    data = ModelCard.load(run / "model" / "README.md").data
    assert (data.datasets, data.language) == (["someone/birds"], ["en", "de"])
    assert "on `someone/birds` with" in read_card(run)


def test_the_parents_are_followed_to_the_hub(family: Path) -> None:
    parent = json.loads((family / "runs/second/environment.json").read_bytes())["parent"]
    assert set(parent["sha256"]) == set(parent["parent"]["sha256"]) == {"model.safetensors"}
    published = parent["parent"]
    assert (published["hub"], published["revision"]) == ("openai-community/gpt2", "0123abc")
    assert (base_model_of(parent), license_of(parent)) == ("openai-community/gpt2", "mit")
    circle: dict[str, Any] = {"init_from": "a"}
    circle["parent"] = circle
    assert (base_model_of(circle), license_of(circle)) == (None, None)
    assert base_model_of({"init_from": "scratch", "hub": "someone/birds"}) is None


def test_nothing_private_is_in_it(family: Path) -> None:
    card = read_card(family / "runs" / "second")
    for private in (
        str(family),
        str(Path.home()) + os.sep,
        socket.gethostname(),
        f"/{getpass.getuser()}/",
    ):
        assert private not in card
    assert not re.search(r"[\"'`= ]/\w", card), "no absolute path"


def test_the_command_trains_the_same(family: Path) -> None:
    run = family / "runs" / "second"
    line = read_card(run).split("## Made again by")[1].split("```bash\n")[1].split("\n```")[0]
    words = shlex.split(line)
    assert words[:3] == ["linnet", "train", "math"]
    again, before = (
        load_recipe("math", words[3:]).model_dump(),
        load_recipe(str(run / "recipe.toml")).model_dump(),
    )
    assert (again["data"].pop("source"), again["model"].pop("init_from")) == ("rows.jsonl", "first")
    for key, value in (("data", "source"), ("data", "prepared"), ("model", "init_from")):
        before[key].pop(value)
    again["data"].pop("prepared")
    assert again == before
    recipe = tomllib.loads(read_card(run).split("```toml\n")[1].split("\n```")[0])
    assert recipe["train"] == tomllib.loads((run / "recipe.toml").read_text())["train"]


@pytest.mark.parametrize("change", ["words", "seal", "latin-1"])
def test_a_card_changed_by_hand_lives_on(run: Path, change: str) -> None:
    """Also when model/ is replaced; the measured one goes beside it."""
    path = run / "model" / "README.md"
    fresh = path.read_bytes()
    edits = {"words": fresh.replace(b"## Limits", b"## Mine"), "seal": fresh[: fresh.index(b"<!--")]}
    path.write_bytes(edits.get(change, "Meine eigene Karte über Vögel".encode("latin-1")))
    edited = path.read_bytes()
    with linnet.files.new_folder(run / "model") as new:
        shutil.copy(run / "model" / "config.json", new)
        write_card(run, new)
    assert path.read_bytes() == edited
    write_card(run, run / "model")
    assert path.read_bytes() == edited
    assert unseal(run / BESIDE) is not None
    path.unlink()
    write_card(run, run / "model")
    assert unseal(path) is not None
    assert not (run / BESIDE).exists()


def test_other_line_ends_are_no_change_by_hand(run: Path) -> None:
    path = run / "model" / "README.md"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    write_card(run, run / "model")
    assert b"\r" not in path.read_bytes()
    assert not (run / BESIDE).exists()


def test_the_name_on_the_hub_stays(run: Path) -> None:
    named = card_of_repository(run / "model", "me/birds")
    assert named is not None
    (run / "model" / "README.md").write_bytes(named)
    for _ in range(2):
        assert 'name = "me/birds"' in read_card(run)
        assert "linnet generate me/birds 'What is the sum" in read_card(run)
        assert "runs/second/model" not in read_card(run)
        write_card(run, run / "model")


DAMAGES = [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b'{"starts": 3, "data": [], "parent": 7}\n', None]
STRANGE = (
    b'{"starts": [1, {"choices": [], "machine": 3, "changes": [1]}], "data": {"counts": {"rows": "x", "tokens": -1}, '
    b'"dropped": [1], "sources": [{"path": 3}, 1]}, "parent": {"init_from": 7, "license": [], "hub": "a b"}, '
    b'"step": 1, "loss": null, "time_s": "x", "tokens": true, "validation_loss": "y", "prompt": 3, "text": null, '
    b'"vocab_size": "x", "n_positions": null}\n'
)


@pytest.mark.parametrize("name", ["recipe.toml", "environment.json", "metrics.jsonl", "samples.jsonl", "all"])
def test_a_damaged_file_costs_its_lines_and_not_the_card(run: Path, name: str) -> None:
    names = ["recipe.toml", "environment.json", "metrics.jsonl", "samples.jsonl"] if name == "all" else [name]
    new = run / ".model.tmp"
    new.mkdir()
    shutil.copy(run / "model" / "config.json", new)
    for damage in [*DAMAGES, STRANGE]:
        for one in names:
            (run / one).unlink(missing_ok=True)
            if damage is not None:
                (run / one).write_bytes(damage)
        if name == "all":
            (new / "config.json").write_bytes(STRANGE)
        write_card(run, new)
        card = (new / "README.md").read_text()
        assert errors_of_card(card) == [], damage
        assert ModelCard.load(new / "README.md").data.library_name == "transformers"
        assert "None" not in card.split("```toml")[0].replace("None is set", ""), damage


def outside_fences(text: str) -> str:
    """What of a Markdown text is no block of code, by CommonMark's rule: a fence ends with one at least as long."""
    lines, fence = [], ""
    for line in text.splitlines():
        found = re.match(r" {0,3}(`{3,})(.*)", line)
        if fence:
            if found and len(found[1]) >= len(fence) and not found[2].strip():
                fence = ""
        elif found and "`" not in found[2]:
            fence = found[1]
        else:
            lines.append(line)
    assert not fence, "a block is not closed"
    return "\n".join(lines)


def test_what_a_model_writes_stays_in_its_block(run: Path) -> None:
    """Fences, front matter, HTML, escape codes and half characters, in samples and in names."""
    hostile = "---\nlicense: evil\n---\n```\n````text\n# EVIL\n<script>x</script>\x1b[31m\udce9\n<!-- EVIL\n{{ 7 * 7 }}"
    (run / "samples.jsonl").write_text(json.dumps({"step": 6, "prompt": hostile, "text": hostile}) + "\n")
    rows = [{"step": 0, "validation_loss": 9.0}, {"step": 6, "validation_loss": 2.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = (run / "recipe.toml").read_text()
    recipe = re.sub(r"^source = .*", 'source = "`` <b>EVIL</b> `x"', recipe, flags=re.M)
    (run / "recipe.toml").write_text(
        re.sub(r"prompts = \[[^\]]*\]", 'prompts = ["x\\\\n```\\\\n# EVIL"]', recipe)
    )
    named = run.rename(run.with_name("# <b>EVIL *x* [y](z)"))
    write_card(named, named / "model")
    card = read_card(named)
    outside = outside_fences(ModelCard(card).text)
    assert "\x1b" not in card
    assert "{{ 7 * 7 }}" in card
    assert "script" not in outside
    assert [line for line in outside.splitlines() if line.startswith("# ")] == [
        r"# # <b>EVIL *x* [y](z)".replace("# #", r"# \#").replace("<", r"\<").replace(">", r"\>")
        .replace("*", r"\*").replace("[", r"\[").replace("]", r"\]")
    ]  # fmt: skip
    assert "<b>" not in re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", outside)
    assert ModelCard.load(named / "model" / "README.md").data.license == "mit"
    assert unseal(named / "model" / "README.md") is not None


def test_a_folder_without_a_model_gets_no_card(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_card(tmp_path, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_a_card_needs_no_torch() -> None:
    code = "import sys, linnet.track.card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
