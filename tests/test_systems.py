"""The five systems on real text, from data to report, card and answers: by the hub's clients and from local files."""

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import hub_repositories as repositories
from tests.loopback_hub import LoopbackHub, run_python

ROOT = Path(__file__).parent.parent
CLI = "from linnet.__main__ import main; main()"
SHORT = (
    *("train.steps=4", "train.batch_size=2", "train.eval_every=2"),
    *("train.eval_tokens=3000", "sample.max_new_tokens=8"),
)
Row = dict[str, Any]


class Rows(NamedTuple):
    """The two parts of a data set."""

    train: list[Row]
    held_out: list[Row]


class System(NamedTuple):
    """How a system's real rows are laid out on the hub and on the disk."""

    recipe: str
    page: str
    read: Callable[[Path], Rows]
    publish: Callable[[Path, Rows], None]
    name: str
    """On the hub; "" where the recipe names it."""
    given: tuple[str, ...] = ()


def rows_of(path: Path, count: int) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(count), strict=False)]


def read_math(data: Path) -> Rows:
    return Rows(rows_of(data / "math/gsm8k_train.jsonl", 200), [])


def read_chats(data: Path) -> Rows:
    rows = [
        {"prompt": row["messages"][0]["content"], "prompt_id": f"{number:064x}", "messages": row["messages"]}
        for number, row in enumerate(rows_of(data / "chat/sgd_train.jsonl", 120))
    ]
    return Rows(rows[20:], rows[:20])


def read_papers(data: Path) -> Rows:
    columns = ("article", "abstract", "section_names")
    rows = [{key: row[key] for key in columns} for row in rows_of(data / "papers/plos.jsonl", 8)]
    return Rows(rows[2:], rows[:2])


def read_lines(data: Path) -> Rows:
    lines = (data / "text/tinyshakespeare.txt").read_text().splitlines()[:800]
    return Rows([{"text": line} for line in lines], [])


def read_book(data: Path) -> Rows:
    book = sorted((data / "text/novels").glob("*.txt"))[0].read_text(encoding="utf-8-sig")
    return Rows([{"text": book[:120_000]}], [])


def publish_math(root: Path, rows: Rows) -> None:
    repositories.write_jsonl(root / "datasets/ArtifactAI/arxiv-math-instruct-50k/train.jsonl", rows.train)


def publish_chats(root: Path, rows: Rows) -> None:
    folder = root / "datasets/HuggingFaceH4/ultrachat_200k"
    parts = {"train_sft": rows.train, "test_sft": rows.held_out}
    for split, part in parts.items():
        repositories.write_parquet(folder / f"data/{split}-00000-of-00001-0123456789abcdef.parquet", part)
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in parts)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")


def publish_papers(root: Path, rows: Rows) -> None:
    folder = root / "datasets/armanc/scientific_papers"
    folder.mkdir(parents=True)
    (folder / "scientific_papers.py").write_text(repositories.SCRIPT)
    branch = folder.with_name("scientific_papers@refs-convert-parquet") / "pubmed"
    for split, part in {"train": rows.train, "validation": rows.held_out, "test": rows.held_out}.items():
        repositories.write_parquet(branch / split / "0000.parquet", part)


def publish_text(root: Path, rows: Rows) -> None:
    folder = root / "datasets/someone/text"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("\n".join(row["text"] for row in rows.train) + "\n", encoding="utf-8")


SMALL = ("tokenizer.vocab_size=600", "model.n_layer=2", "model.n_embd=64", "model.n_head=2")
SYSTEMS = (
    System("math", "math.md", read_math, publish_math, ""),
    System("chat", "chat.md", read_chats, publish_chats, ""),
    System("papers", "papers.md", read_papers, publish_papers, ""),
    System("summaries", "papers.md", read_papers, publish_papers, ""),
    System("lines", "lines.md", read_lines, publish_text, "someone/text"),
    System("scratch", "scratch.md", read_book, publish_text, "someone/text", SMALL),
)


def write_local(folder: Path, rows: Rows, *, as_text: bool) -> list[str]:
    """The same rows as files; returns the keys that name them."""
    if as_text:
        publish_text(folder, rows)
        return [f"data.source={folder / 'datasets/someone/text/train.txt'}"]
    repositories.write_jsonl(folder / "rows.jsonl", rows.train)
    words = [f"data.source={folder / 'rows.jsonl'}"]
    if rows.held_out:
        repositories.write_jsonl(folder / "held_out.jsonl", rows.held_out)
        words.append(f"data.validation={folder / 'held_out.jsonl'}")
    return words


def curve(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("loss", row.get("validation_loss"))) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.recipe)
def test_a_system_from_data_to_answer(tmp_path: Path, shared_data: Path, system: System) -> None:
    """Trained from the hub and from files with equal losses; report, card and page say what was measured."""
    rows = system.read(shared_data)
    system.publish(tmp_path / "hub", rows)
    shutil.copytree(shared_data / "base-30m", tmp_path / "hub/openai-community/gpt2")
    words = [system.recipe, *system.given, *SHORT]
    source = [f"data.source=hf:{system.name}"] if system.name else []
    with LoopbackHub(tmp_path / "hub", moved={"scientific_papers": "armanc/scientific_papers"}) as hub:
        online = run_python(CLI, "train", *words, *source, home=tmp_path, endpoint=hub.endpoint)
    assert online.returncode == 0, online.stderr
    here = write_local(tmp_path, rows, as_text=bool(system.name))
    if system.recipe != "scratch":
        here.append(f"model.init_from={shared_data / 'base-30m'}")
    local = run_python(
        CLI, "train", *words, *here, "--run", "local", home=tmp_path, endpoint="http://127.0.0.1:9"
    )
    assert local.returncode == 0, local.stderr

    run = tmp_path / "runs" / system.recipe
    assert curve(run) == curve(tmp_path / "local")
    assert len(curve(run)) == 7  # 4 steps, and evaluations at 0, 2 and 4
    look_at_report(run)
    look_at_card(run, trained_on=hub_names(online.stdout, system))
    assert (ROOT / "docs" / system.page).is_file()
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.config.vocab_size == len(tokenizer)


def hub_names(output: str, system: System) -> str:
    """The data set as the run's first lines call it."""
    words = " ".join(output.split())
    names = (system.name, "ArtifactAI/arxiv-math-instruct-50k", "HuggingFaceH4/ultrachat_200k")
    return next((name for name in (*names, "armanc/scientific_papers") if name and name in words), "")


def look_at_report(run: Path) -> None:
    """What the model wrote and the best loss are on the page, and nothing is fetched from outside."""
    page = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    written = [line.strip() for line in samples[-1]["text"].splitlines() if line.strip().isprintable()]
    assert any(written), "a sample to look for"
    assert all(line in page for line in written)
    assert f"{min(loss for step, loss in evaluations(run) if step > 0):.3f}" in page
    assert "default-src 'none'" in page


def look_at_card(run: Path, *, trained_on: str) -> None:
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    best = min(loss for step, loss in evaluations(run) if step > 0)
    assert f"{best:.4f}" in card.text
    if trained_on:
        assert card.data.datasets == [trained_on]


def evaluations(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
