"""Every recipe from the hub to a model, by the command line and the real clients, against a hub on this machine."""

import json
import shutil
from pathlib import Path

import pytest

from tests import hub_repositories as repositories
from tests.loopback_hub import LoopbackHub, run_python

CLI = "from linnet.__main__ import main; main()"
MOVED = {"scientific_papers": "armanc/scientific_papers"}
# Recipe -> what has to be given, and the data set that it names.
RECIPES = {
    "math": ([], "ArtifactAI/arxiv-math-instruct-50k"),
    "chat": ([], "HuggingFaceH4/ultrachat_200k"),
    "papers": ([], "armanc/scientific_papers"),
    "summaries": ([], "armanc/scientific_papers"),
    "lines": (["data.source=hf:someone/lines"], "someone/lines"),
    "text": (["data.source=hf:someone/book"], "someone/book"),
    "scratch": (["data.source=hf:someone/book", "model.n_layer=1", "model.n_embd=48"], "someone/book"),
}
SHORT = ("train.steps=3", "sample.max_new_tokens=4")


def publish(root: Path) -> None:
    for build in (
        repositories.math,
        repositories.chat,
        repositories.papers,
        repositories.lines,
        repositories.book,
    ):
        build(root)
    repositories.gpt2(root)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_the_hub_and_then_without_it(tmp_path: Path, recipe: str) -> None:
    publish(tmp_path / "hub")
    given, name = RECIPES[recipe]
    words = [recipe, *given, *SHORT]
    with LoopbackHub(tmp_path / "hub", moved=MOVED) as hub:
        first = run_python(CLI, "train", *words, home=tmp_path, endpoint=hub.endpoint)
    assert first.returncode == 0, first.stderr
    assert name in " ".join(first.stdout.split())
    assert not any(".py" in request for request in hub.requests if request.startswith("GET"))
    assert any(f"/{name}" in request for request in hub.requests)

    (prepared,) = (tmp_path / "prepared").glob("[!.]*")
    before = (prepared / "tokens.bin").stat().st_ino
    reused = run_python(CLI, "prepare", *words, home=tmp_path, endpoint=hub.endpoint)
    assert reused.returncode == 0, reused.stderr
    assert (prepared / "tokens.bin").stat().st_ino == before, "prepared data fits, without asking"

    shutil.rmtree(tmp_path / "prepared")
    again = ("train", *words, "--run", "again")
    offline = run_python(CLI, *again, home=tmp_path, endpoint=hub.endpoint, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert losses(tmp_path / "again") == losses(tmp_path / "runs" / recipe)
    assert len(losses(tmp_path / "again")) >= 3


@pytest.mark.slow
def test_max_rows_takes_the_first_rows_and_one_sentence_tells_of_no_data(tmp_path: Path) -> None:
    publish(tmp_path / "hub")
    with LoopbackHub(tmp_path / "hub") as hub:
        few = run_python(CLI, "prepare", "math", "data.max_rows=30", home=tmp_path, endpoint=hub.endpoint)
        missing = run_python(
            CLI, "prepare", "math", "data.source=hf:no/such", home=tmp_path, endpoint=hub.endpoint
        )
    assert few.returncode == 0, few.stderr
    (prepared,) = (tmp_path / "prepared").glob("[!.]*")
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert 25 <= manifest["counts"]["rows"] <= 30
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert "the hub has none of that name" in " ".join(missing.stderr.split())
