"""`linnet plan`: what is said before anything is there, and that it is what `train` then does."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from linnet.planning import parse_bytes
from linnet.training.memory import ITEMS, PROCESS

from .commands import Command, runner

KEYS = {"bytes", "peak_bytes", "disk_bytes", "seconds", "fits", "settings"}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("linnet.training.speed.SECONDS", 0.01)
    return runner(monkeypatch, capfd)


def plan(command: Command, *words: str) -> dict[str, Any]:
    done = command("plan", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert found.keys() >= KEYS
    assert list(found["bytes"]) == list(ITEMS)
    assert sum(found["bytes"].values()) == found["peak_bytes"]
    return found


def test_a_published_model_needs_neither_network_nor_data(command: Command, tmp_path: Path) -> None:
    found = plan(command, "math", "--device", "cuda", "--memory", "4GB")
    assert found["fits"]
    assert found["peak_bytes"] <= found["memory_bytes"] == 4_000_000_000
    assert found["settings"].keys() == {
        "train.micro_batch_size",
        "train.activation_checkpointing",
        "train.offload",
    }
    assert found["seconds"] is None
    assert "steps" not in found["choices"]
    assert any("not here yet" in note for note in found["notes"])
    # Newest two, the best, one being written: 12 bytes a weight; model/ twice.
    assert found["disk_bytes"] == (4 * 12 + 2 * 4) * 124_439_808
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_says_what_would(command: Command) -> None:
    words = ("math", "--device", "cuda", "--memory", "4GB", "model.init_from=gpt2-xl", "train.block_size=512")
    found = plan(command, *words)
    assert not found["fits"]
    assert found["settings"] == {}
    assert any("model.lora.rank=8 model.lora.base=int8" in note for note in found["notes"])
    assert plan(command, *words, "model.lora.rank=8", "model.lora.base=int8")["fits"]
    # The bytes are those of the row that the note speaks of, not of a way that takes more.
    assert found["choices"]["offload"] == "on (what takes the least)"
    row = found["peak_bytes"] - PROCESS["cuda"]
    assert any(f"A single row of 512 tokens takes {row / 1e9:.2f} GB" in note for note in found["notes"])
    too_many = plan(command, "math", "train.batch_size=64", "train.micro_batch_size=64", "--memory", "5GB")
    assert not too_many["fits"]
    assert too_many["settings"]["train.micro_batch_size"] < 64


def test_the_page_has_the_peaks_of_the_goals_under_4_gb(command: Command) -> None:
    page = (Path(__file__).parents[1] / "docs/plan.md").read_text()
    rows = re.findall(r"^\| `(train\.block_size=.*?)`.*\| (\d\.\d\d) \| [\d. ]*\|$", page, re.M)
    assert len(rows) == 4
    for keys, peak in rows:
        found = plan(command, "math", "--device", "cuda", "--memory", "4GB", *keys.split())
        assert found["fits"]
        assert f"{found['peak_bytes'] / 1e9:.2f}" == peak


def test_the_size_of_files_is_that_of_a_glob_too(command: Command, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / "notes" / name).write_text("a" * 4000)
    for source, tokens in (
        (f"{tmp_path}/notes/*.txt", 1800),
        ("notes/*", 2700),
        ("**/a.txt", 900),
        ("**a", 0),
    ):
        notes = plan(command, "scratch", f"data.source={source}")["notes"]
        said = f"about {tokens:,} tokens" if tokens else "not here yet"
        assert any(said in note for note in notes), source
    assert any(
        "not here yet" in note for note in plan(command, "scratch", "data.source=~nobody-here/a")["notes"]
    )


def test_rows_that_are_not_full_are_counted(command: Command, tmp_path: Path) -> None:
    """Two examples of 40 tokens do not fit into 64: one a row, and a third of it is empty."""
    lines = [json.dumps({"question": f"{n:03}" * 5, "answer": f"{n:03}" * 6}) for n in range(100)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    keys = (
        "math",
        "data.source=data.jsonl",
        "model.init_from=scratch",
        "tokenizer.name=char",
        "model.n_embd=32",
    )
    keys = (*keys, "model.n_head=2", "model.n_layer=1", "train.block_size=64", "train.batch_size=4")
    keys = (*keys, "train.epochs=1", "sample.max_new_tokens=0", "data.validation=0")
    done = command("train", *keys)
    assert done.code == 0, done.err
    start = json.loads((tmp_path / "runs/math/environment.json").read_bytes())["starts"][0]
    found = plan(command, *keys)
    assert found["choices"]["steps"].split()[0] == str(start["choices"]["steps"]["value"])
    rows = [json.loads(line) for line in (tmp_path / "runs/math/metrics.jsonl").read_text().splitlines()]
    speed = statistics.median([row["tokens_per_s"] for row in rows if "loss" in row][-20:])
    read = rows[-1]["tokens"]
    assert found["seconds"] * speed == pytest.approx(read, rel=0.1)


def test_what_is_asked_for_is_what_fits_or_not(command: Command) -> None:
    words = ("math", "--device", "cuda", "--memory", "4GB", "model.init_from=gpt2-medium")
    found = plan(command, *words, "train.offload=off", "train.activation_checkpointing=off")
    assert not found["fits"]
    assert found["peak_bytes"] > 8e9
    assert found["choices"]["offload"] == "off (asked for)"
    assert found["settings"]["train.offload"] == "on"
    assert "offload: 6.39 GB in the machine's memory besides" in plan(command, *words)["notes"]


def test_without_data_no_epochs_are_counted(command: Command) -> None:
    assert plan(command, "scratch", "train.steps=5")["choices"]["steps"] == "5 (asked for)"


def test_train_does_what_was_planned(command: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the bird sings a song that it has heard. " * 2000)
    keys = ("scratch", "tokenizer.name=char", "data.source=text.txt", "model.n_embd=32", "model.n_head=2")
    keys = (*keys, "model.n_layer=2", "train.block_size=32", "train.epochs=0.02", "sample.max_new_tokens=0")
    before = plan(command, *keys)
    assert any("not prepared yet: about 73,800 tokens" in note for note in before["notes"])
    assert before["seconds"] > 0
    done = command("train", *keys)
    assert done.code == 0, done.err
    after = plan(command, *keys)
    assert any("prepared in prepared/scratch-" in note for note in after["notes"])
    assert any("the last steps in runs/scratch" in note for note in after["notes"])
    if before["device"] == "cpu":  # What this CPU did says nothing of a card.
        assert plan(command, *keys, "--device", "cuda", "--memory", "4GB")["seconds"] is None
    start = json.loads((tmp_path / "runs/scratch/environment.json").read_bytes())["starts"][0]
    for key, value in after["settings"].items():
        assert start["choices"][key.removeprefix("train.")]["value"] == value
    assert after["choices"]["steps"].split()[0] == str(start["choices"]["steps"]["value"])
    kept = sum(path.stat().st_size for path in (tmp_path / "runs/scratch").rglob("*.safetensors"))
    assert kept <= after["disk_bytes"] <= 4 * kept


def test_the_table_names_peak_disk_time_and_settings(command: Command) -> None:
    done = command("plan", "scratch", "train.steps=10", "data.source=none.txt")
    assert done.code == 0, done.err
    for word in ("weights", "peak", "disk", "time", "it fits", "Settings that fit: train.micro_batch_size="):
        assert word in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("math", "--memory", "much"), "--memory is much"),
        (("math", "--memory", "9" * 400), "--memory is 999"),
        (("math", "--device", "tpu"), "--device is tpu"),
        (("math", "--device", "cuda"), "--memory 4GB"),
        (("math", "train.block_sise=3"), "train.block_size"),
    ],
)
def test_mistakes_get_one_sentence(command: Command, words: tuple[str, ...], message: str) -> None:
    import torch

    if words[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a card")
    done = command("plan", *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_sizes() -> None:
    assert parse_bytes("4GB") == 4_000_000_000
    assert parse_bytes("4 GiB") == 4 << 30
    assert parse_bytes("1.5gb") == 1_500_000_000
    assert parse_bytes("800") == 800
