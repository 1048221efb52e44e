"""`linnet eval` as it is typed: the run's own split, any file, several models, and what goes wrong."""

import json
import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from linnet.data.store import Store
from tests.commands import Command, runner
from tests.warm import Warm

TINY = (
    *("model.init_from=scratch", "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "train.steps=8"),
    *("train.eval_every=8", "train.save_every=8"),
    *(
        "tokenizer.vocab_size=300",
        "train.batch_size=4",
        "train.learning_rate=0.01",
        "sample.max_new_tokens=0",
    ),
)
TEXT = "The bird sings a song. A student hears it 🐦, and writes it down. " * 60
LINES = [f"Bird {n} sings of {n * 7 % 13} rivers, and of {n % 5} hills." for n in range(240)]
PROMISED = {"loss", "perplexity", "bits_per_byte", "tokens", "learned_tokens", "ended_share", "model", "data"}


def question(number: int) -> dict[str, str]:
    return {"question": f"What is {number} + 2?", "answer": f"It is {number + 2}.\n#### {number + 2}"}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """Data, and five small runs."""
    root = tmp_path_factory.mktemp("eval")
    (root / "notes.txt").write_text(TEXT)
    (root / "lines.txt").write_text("\n".join(LINES) + "\n")
    (root / "other.txt").write_text("\n".join(LINES[::-7]) + "\n")
    (root / "sums.jsonl").write_text("".join(json.dumps(question(n)) + "\n" for n in range(200)))
    for recipe, name, source, *more in (
        ("text", "text", "notes.txt", "train.block_size=32"),
        ("lines", "bpe", "lines.txt"),
        ("lines", "char", "lines.txt", "tokenizer.name=char"),
        ("math", "math", "sums.jsonl", "data.validation=0.2"),
        ("lines", "all", "lines.txt", "data.validation=0.0"),
    ):
        words = (recipe, f"data.source={source}", *TINY, *more, "--run", f"runs/{name}")
        code, output = warm.run("train", *words, folder=root)
        assert code == 0, output
    return root


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command("runs/bpe", "--json")` runs `linnet eval` in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    return runner(monkeypatch, capfd, "eval")


def store_of(folder: Path, name: str) -> Store:
    """The held-out part of what a run was trained on."""
    newest = max((folder / "runs" / name / "checkpoints").glob("step-*"))
    wanted = json.loads((newest / "state.json").read_text())["data"]
    stores = [Store.open(path) for path in (folder / "prepared").iterdir() if not path.name.startswith(".")]
    held_out = next(store for store in stores if store.fingerprint == wanted).validation
    assert held_out is not None
    return held_out


def theirs(model: Path, store: Store, *, window: int = 10**9, stride: int = 10**9) -> float:
    """transformers' loss of the learned tokens, each example alone, in windows that overlap."""
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    total, count = 0.0, 0
    for start, stop in zip(store.examples[:-1], store.examples[1:], strict=True):
        ids = torch.tensor(store.tokens[start:stop].astype(np.int64))
        learn = torch.tensor(store.learn[start:stop].astype(bool))[1:]
        done = 0
        for begin in range(0, len(ids) - 1, stride):
            end = min(begin + window, len(ids) - 1)
            with torch.no_grad():
                logits = network(ids[begin:end][None]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, ids[begin + 1 : end + 1], reduction="none")
            total += float(losses[done - begin :][learn[done:end]].sum())
            done = end
            if end == len(ids) - 1:
                break
        count += int(learn.sum())
    return total / count


def last_validation_loss(folder: Path, name: str) -> float:
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return float(min(row["validation_loss"] for row in rows if "validation_loss" in row))


@pytest.mark.parametrize("name", ["bpe", "char", "math"])
def test_the_runs_own_split_has_the_loss_of_transformers(command: Command, folder: Path, name: str) -> None:
    report = command(f"runs/{name}", "--json", "--generate", "0").report
    assert report["loss"] == pytest.approx(
        theirs(folder / "runs" / name / "model", store_of(folder, name)), abs=1e-4
    )
    # The training evaluates the same tokens, in the fastest precision that the machine has.
    assert report["loss"] == pytest.approx(last_validation_loss(folder, name), abs=0.02)
    assert report.keys() >= PROMISED
    assert report["perplexity"] == pytest.approx(math.exp(report["loss"]))
    assert report["split"] == "held-out"
    assert report["ended_share"] is None


@pytest.mark.parametrize("stride", [None, 5])
def test_text_is_read_in_windows_that_overlap(command: Command, folder: Path, stride: int | None) -> None:
    words = [] if stride is None else ["--stride", str(stride)]
    report = command("runs/text", "--json", *words).report
    held_out = store_of(folder, "text")
    expected = theirs(folder / "runs/text/model", held_out, window=32, stride=stride or 16)
    assert report["loss"] == pytest.approx(expected, abs=1e-4)
    assert report["stride"] == (stride or 16)
    assert report["learned_tokens"] == held_out.pairs


def test_answers_are_written_and_judged(command: Command, folder: Path) -> None:
    report = command("runs/math", "--json", "--generate", "3", "--max-new-tokens", "12").report
    assert report["answers"] == 3
    assert report["ended_share"] in (0, 1 / 3, 2 / 3, 1)
    assert report["exact_match"] in (0, 1 / 3, 2 / 3, 1)
    answers = [question(n)["answer"] for n in range(200)]
    held_out = store_of(folder, "math")
    rows = held_out.manifest["counts"]["rows"]
    mean = sum(len(answer.encode()) + 1 for answer in answers) / len(answers)  # a space comes before each
    assert report["bytes"] == pytest.approx(mean * rows, rel=0.05)
    both = command(
        "runs/math", "--json", "--generate", "2", "--max-new-tokens", "5", "--metric", "rouge"
    ).report
    assert "rougeL" in both
    assert "exact_match" not in both


def test_any_file_in_the_runs_own_format(command: Command) -> None:
    report = command("runs/bpe", "--data", "other.txt", "--json").report
    assert report["split"] == "all"
    assert report["format"] == "lines"
    assert report["bytes"] == sum(len(line) for line in LINES[::-7])
    as_text = command("runs/bpe", "--data", "other.txt", "--format", "text", "--json").report
    assert as_text["bytes"] == sum(len(line) + 1 for line in LINES[::-7])
    assert as_text["format"] == "text"


def test_columns_can_be_named(command: Command, folder: Path) -> None:
    (folder / "odd.jsonl").write_text('{"ask": "What is 1 + 1?", "say": "2"}\n' * 3)
    failed = command("runs/math", "--data", "odd.jsonl", "--json")
    assert failed.code == 1
    assert "ask" in failed.err
    named = ("data.columns.question=ask", "data.columns.answer=say")
    report = command("runs/math", "--data", "odd.jsonl", "--json", "--generate", "0", *named).report
    assert report["bytes"] == 6  # " 2" three times


def test_several_models_side_by_side(command: Command) -> None:
    both = command("runs/bpe", "runs/char", "--json").report["models"]
    assert [report["model"] for report in both] == ["runs/bpe", "runs/char"]
    bpe, char = both
    assert bpe["bytes"] == char["bytes"]  # the same rows, whatever the tokenizer
    assert bpe["learned_tokens"] < char["learned_tokens"]
    for report in both:
        bits = report["loss"] * report["learned_tokens"] / math.log(2) / report["bytes"]
        assert report["bits_per_byte"] == pytest.approx(bits)
    table = command("runs/bpe", "runs/char", "--precision", "bf16")
    assert table.code == 0
    assert "runs/bpe" in table.out.splitlines()[0]
    assert "runs/char" in table.out.splitlines()[0]
    assert "bits per byte" in table.out
    assert "different data" not in table.err


def test_a_model_that_is_no_run_is_measured_as_the_run_beside_it(command: Command, folder: Path) -> None:
    copy = folder / "copy"
    copy.mkdir()
    for path in (folder / "runs/char/model").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    run, other = command("runs/bpe", "copy", "--json").report["models"]
    assert other["data"] == run["data"]
    assert other["bytes"] == run["bytes"]
    assert other["loss"] == pytest.approx(command("runs/char", "--json").report["loss"], abs=1e-5)
    alone = command("copy", "--json")
    assert alone.code == 1
    assert "add --data" in alone.err


def test_different_data_are_said(command: Command) -> None:
    result = command("runs/bpe", "runs/text", "--json", "--limit-tokens", "100")
    assert "different data" in result.err
    assert all(report["tokens"] <= 100 for report in result.report["models"])


def test_the_data_of_the_training_or_none(command: Command, folder: Path) -> None:
    """Prepared data count as they are; where they are gone they are made again, from the same files alone."""
    before = command("runs/bpe", "--json").report
    (folder / "lines.txt").rename(folder / "hidden.txt")
    assert command("runs/bpe", "--json").report == before
    (folder / "hidden.txt").rename(folder / "lines.txt")
    (folder / "prepared").rename(folder / "away")
    assert command("runs/bpe", "--json").report == before
    shutil.rmtree(folder / "prepared")
    (folder / "lines.txt").rename(folder / "kept.txt")
    missing = command("runs/bpe", "--json")
    assert missing.code == 1
    assert "add --data SOURCE" in missing.err
    (folder / "lines.txt").write_text("\n".join(LINES[:200]) + "\n")
    changed = command("runs/bpe", "--json")
    (folder / "kept.txt").replace(folder / "lines.txt")
    assert changed.code == 1
    assert "have changed since its training" in changed.err
    assert command("runs/bpe", "--json").report == before


def test_a_run_without_held_out_text(command: Command) -> None:
    result = command("runs/all")
    assert result.code == 1
    assert "has no held-out split: add --data SOURCE" in result.err
    assert command("runs/all", "--data", "other.txt", "--json").report["tokens"] > 0


def no_tokenizer(folder: Path) -> str:
    bare = folder / "bare"
    bare.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / "runs/bpe/model" / name).read_bytes())
    return "bare"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("nowhere/run", "--data", "other.txt"), 1, "nowhere"),
        (("runs/bpe", "--data", "missing.txt"), 1, "missing.txt"),
        (("runs/bpe", "--data", "empty.txt"), 1, "empty.txt"),
        (("bare", "--data", "other.txt"), 1, "bare holds no tokenizer"),
        (("runs/bpe", "--format", "text"), 2, "--data"),
        (("runs/bpe", "--data", "other.txt", "--format", "poems"), 2, "poems"),
        (("runs/bpe", "--precision", "fp8"), 2, "fp8"),
        (("runs/bpe", "--precision", "int8"), 2, "'int8', but must be fp32 or bf16"),
        (("runs/bpe", "--metric", "bleu"), 2, "bleu"),
        (("runs/bpe", "--metric", "rouge"), 1, "no questions"),
        (("runs/math", "--metric", "rouge", "--generate", "0"), 2, "--generate"),
        (("runs/bpe", "--stride", "4"), 2, "--stride is for the format text"),
        (("runs/bpe", "--limit-tokens", "0"), 2, "--limit-tokens"),
        (("runs/bpe", "data.columns.text=x"), 2, "--data"),
        (("runs/bpe", "--data", "other.txt", "data.validation=0.5"), 2, "data.validation"),
        (("data.columns.text=x", "--data", "other.txt"), 2, "model"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    command: Command, folder: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    (folder / "empty.txt").write_text("")
    no_tokenizer(folder)
    result = command(*words)
    assert result.code == code, result.err
    assert says in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert "data.source" not in result.err


def test_ctrl_c_ends_it_at_once_with_130(folder: Path, warm: Warm) -> None:
    fault = {"point": "answer", "count": 3, "signals": [signal.SIGINT]}
    child = warm.start("eval", "runs/math", "--json", folder=folder, faults=fault)
    assert child.wait() == 130
    assert "loss" in child.output
    assert "Traceback" not in child.output
    assert "perplexity" not in child.output
