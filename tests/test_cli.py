"""The commands as a user types them: the whole road, the exit codes, and what bad input gets."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import linnet
from linnet import cli
from linnet.files import Lock
from tests.commands import Command, runner

TINY = (
    *("model.init_from=scratch", "model.n_layer=1", "model.n_head=2", "model.n_embd=32"),
    *("tokenizer.vocab_size=300", "train.batch_size=4", "train.block_size=32", "sample.max_new_tokens=4"),
)
TEXT = "The bird sings a song. A student hears it, and writes it down. " * 60


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command("train", "text", ...)` in an empty folder, in this process: importing torch costs 2 s each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    return runner(monkeypatch, capfd)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return path


def test_text_becomes_a_model_that_transformers_opens(command: Command, text: Path, tmp_path: Path) -> None:
    done = command("train", "text", "data.source=notes.txt", "train.steps=4", "train.eval_every=2", *TINY)
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "text"
    expected = (
        "checkpoints environment.json lock loss.png metrics.jsonl model recipe.toml report.html samples.jsonl"
    )
    assert sorted(path.name for path in run.iterdir()) == expected.split()
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        assert (run / "model" / name).is_file()

    written = command(
        "generate", "runs/text", "The bird", "--temperature", "0", "--max-new-tokens", "12", "--json"
    )
    assert written.code == 0, written.err
    ours = json.loads(written.out)
    assert ours.keys() == {"text", "tokens", "token_ids", "finish_reason"}
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    inputs = tokenizer("The bird", return_tensors="pt")
    theirs = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0][inputs["input_ids"].shape[1] :]
    assert ours["token_ids"] == theirs.tolist()[: ours["tokens"]]
    assert linnet.load(run).generate("The bird", temperature=0, max_new_tokens=12) == ours["text"]

    again = command("train", "text")
    assert (again.code, "finished" in again.out) == (0, True)
    table = json.loads(command("runs", "--json").out)["runs"][0]
    assert (table["step"], table["state"]) == (4, "finished")
    assert command("runs", "--plot", "all.png").code == 0
    assert (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_goes_on_longer_and_says_so(command: Command, text: Path, tmp_path: Path) -> None:
    assert command("train", "text", "data.source=notes.txt", "train.steps=2", *TINY).code == 0
    longer = command("train", "text", "train.steps=4")
    assert longer.code == 0, longer.err
    assert "goes on at step 2" in longer.out
    rows = [json.loads(line) for line in (tmp_path / "runs/text/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    starts = json.loads((tmp_path / "runs/text/environment.json").read_text())["starts"]
    assert starts[1]["changes"] == [{"key": "train.steps", "old": 2, "new": 4}]
    for change, key in (("train.learning_rate=1e-2", "train.learning_rate"), ("train.seed=1", "train.seed")):
        refused = command("train", "text", change, "train.steps=6")
        assert refused.code == 1
        assert key in refused.err
        assert "--accept-changes" in refused.err
    accepted = command("train", "text", "train.seed=1", "train.steps=5", "--accept-changes")
    assert accepted.code == 0, accepted.err


def test_a_new_run_from_an_old_one_records_its_parent(command: Command, text: Path, tmp_path: Path) -> None:
    assert command("train", "text", "data.source=notes.txt", "train.steps=2", *TINY).code == 0
    (tmp_path / "data.txt").write_text("".join(f"Bird {i} sings.\n" for i in range(50)))
    child = command("train", "lines", "data.source=data.txt", "model.init_from=runs/text", "train.steps=2")
    assert child.code == 0, child.err
    parent = json.loads((tmp_path / "runs/lines/environment.json").read_text())["parent"]
    assert parent["init_from"] == "runs/text"
    assert len(parent["sha256"]["model.safetensors"]) == 64


def test_a_run_goes_on_without_its_parent(command: Command, text: Path, tmp_path: Path) -> None:
    assert command("train", "text", "data.source=notes.txt", "train.steps=2", *TINY).code == 0
    (tmp_path / "data.txt").write_text("".join(f"Bird {i} sings.\n" for i in range(50)))
    child = ("train", "lines", "data.source=data.txt", "model.init_from=runs/text")
    assert command(*child, "train.steps=2").code == 0
    before = json.loads((tmp_path / "runs/lines/environment.json").read_text())["parent"]
    (tmp_path / "runs" / "text").rename(tmp_path / "elsewhere")
    longer = command(*child, "train.steps=3")
    assert longer.code == 0, longer.err
    assert json.loads((tmp_path / "runs/lines/environment.json").read_text())["parent"] == before


def test_a_run_that_ended_early_goes_on_when_more_is_asked(
    command: Command, text: Path, tmp_path: Path
) -> None:
    early = ("train.patience=1", "train.eval_every=1", "train.learning_rate=1e-9", "train.warmup_steps=0")
    words = ("train", "text", "data.source=notes.txt", *TINY, *early)
    assert command(*words, "train.steps=50").code == 0
    said = command("train", "text").out
    assert "ended early after 1 evaluations" in said
    steps = json.loads(command("runs", "--json").out)["runs"][0]["step"]
    assert steps < 50
    more = command("train", "text", "train.steps=60")
    assert more.code == 0, more.err
    assert json.loads(command("runs", "--json").out)["runs"][0]["step"] > steps


def test_changes_that_the_weights_cannot_follow_are_refused_whatever_is_accepted(
    command: Command, text: Path, tmp_path: Path
) -> None:
    words = ("train", "text", "data.source=notes.txt", "tokenizer.name=char", *TINY)
    assert command(*words, "train.steps=2").code == 0
    wider = command(*words, "train.steps=3", "model.n_embd=64", "--accept-changes")
    assert (wider.code, "n_embd" in wider.err, "Traceback" in wider.err) == (1, True, False)
    text.write_text(TEXT + "Something else: äöü! 123")
    changed = command(*words, "train.steps=3")
    assert (changed.code, "data.source" in changed.err) == (1, True)
    accepted = command(*words, "train.steps=3", "--accept-changes")
    assert (accepted.code, "vocab_size" in accepted.err, "Traceback" in accepted.err) == (1, True, False)


def test_a_checkpoint_that_lacks_a_newer_key_goes_on_with_its_default(
    command: Command, text: Path, tmp_path: Path
) -> None:
    from linnet.training.checkpoint import load_newest, save_checkpoint

    assert command("train", "text", "data.source=notes.txt", "train.steps=2", *TINY).code == 0
    folder = tmp_path / "runs" / "text" / "checkpoints"
    newest = load_newest(folder, say=print)
    assert newest is not None
    del newest.state["recipe"]["train"]["momentum"], newest.state["recipe"]["train"]["patience"]
    parts = {"weights": newest.weights, "optimizer": newest.optimizer, "state": newest.state}
    save_checkpoint(folder, step=newest.step, **parts)
    went_on = command("train", "text", "train.steps=3")
    assert went_on.code == 0, went_on.err
    assert "goes on at step 2" in went_on.out


def test_the_defaults_of_the_command_are_those_of_the_library() -> None:
    import inspect

    from linnet.generate.sampling import Sampling

    api_alone = ("presence_penalty", "frequency_penalty", "logit_bias", "logprobs")
    ours = {key: value.default for key, value in inspect.signature(cli.generate).parameters.items()}
    for key, default in vars(Sampling()).items():
        if key in api_alone:
            assert key not in ours
        elif key not in ("stop", "seed"):
            assert ours[key] == default, key


def test_fifty_lines_train_with_the_defaults(command: Command, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("".join(f"Line {i} tells of bird number {i}.\n" for i in range(50)))
    shape = [key for key in TINY if key.startswith(("model", "sample"))]
    done = command("train", "lines", "data.source=data.txt", "train.epochs=1", *shape)
    assert done.code == 0, done.err
    steps = [line.split() for line in done.out.splitlines() if line.startswith(("steps", "batch_size"))]
    assert {row[0]: int(row[1]) for row in steps}["steps"] >= 8


def test_dry_run_and_profile_leave_no_run_behind(command: Command, text: Path, tmp_path: Path) -> None:
    shown = command("train", "text", "data.source=notes.txt", "--dry-run", *TINY)
    assert shown.code == 0, shown.err
    assert "of them learned" in shown.out
    assert "bird" in shown.out
    profiled = command("train", "text", "data.source=notes.txt", "--profile", *TINY)
    assert profiled.code == 0, profiled.err
    assert "backward" in profiled.out
    assert not (tmp_path / "runs").exists()


def test_prepare_reports_its_counts(command: Command, text: Path) -> None:
    done = command("prepare", "text", "data.source=notes.txt", "--json", *TINY)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["tokens"] > 0
    assert Path(report["folder"], "tokens.bin").is_file()


def test_generate_streams_what_it_would_print(command: Command, text: Path) -> None:
    command("train", "text", "data.source=notes.txt", "train.steps=2", *TINY)
    words = ("generate", "runs/text", "The", "--seed", "3", "--max-new-tokens", "20")
    assert command(*words, "--stream").out == command(*words).out


BAD_INPUT = {
    "missing file": (["train", "text", "data.source=no.txt", *TINY], 1, ["no.txt", "data.source"]),
    "no source": (["train", "text", *TINY], 1, ["data.source"]),
    "empty file": (["train", "text", "data.source=empty.txt", *TINY], 1, ["empty.txt"]),
    "folder without text": (["train", "text", "data.source=nothing", *TINY], 1, ["nothing"]),
    "not UTF-8": (["train", "text", "data.source=latin.txt", *TINY], 1, ["latin.txt", "byte"]),
    "binary": (["train", "text", "data.source=binary.txt", *TINY], 1, ["binary.txt"]),
    "short text": (
        ["train", "text", "data.source=short.txt", *TINY, "train.block_size=512"],
        1,
        ["train.block_size=512"],
    ),
    "unknown key": (["train", "text", "train.stepz=1"], 2, ["train.stepz", "train.steps"]),
    "wrong type": (["train", "text", "train.steps=many"], 2, ["train.steps", "integer"]),
    "block over positions": (
        ["train", "text", "data.source=notes.txt", *TINY, "model.n_positions=16"],
        2,
        ["train.block_size=32", "16"],
    ),
    "heads": (["train", "text", *TINY, "model.n_head=5"], 2, ["model.n_embd=32", "model.n_head=5"]),
    "vocabulary": (
        ["train", "text", "data.source=notes.txt", "model.init_from=small", "tokenizer.name=bpe"],
        1,
        ["tokenizer", "270"],
    ),
    "pickle only": (["generate", "pickled", "x"], 1, ["pytorch_model.bin", "pickle"]),
    "no such model": (["generate", "nowhere/at/all", "x"], 1, ["nowhere/at/all"]),
    "unknown recipe": (["train", "texd"], 2, ["texd", "text"]),
    "unknown verb": (["trian"], 2, ["trian"]),
    "top_p": (["generate", "small", "x", "--top-p", "0"], 2, ["top_p"]),
    "no runs": (["runs", "nothing"], 1, ["nothing"]),
    "no hub": (["train", "lines", "data.source=notes.txt"], 1, ["model.init_from=scratch"]),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_one_sentence_and_its_exit_code(
    name: str, command: Command, text: Path, tmp_path: Path
) -> None:
    from linnet.model.gpt2 import GPT2, GPT2Config
    from linnet.model.pretrained import save_model
    from linnet.tokenizer import train_bpe

    (tmp_path / "empty.txt").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"Good morning. " * 30 + "Grüße aus Zürich. ".encode("latin-1") * 30)
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "short.txt").write_text("A short text.")
    for folder in ("small", "pickled"):
        (tmp_path / folder).mkdir()
        tokenizer = train_bpe(iter([TEXT]), vocab_size=270)
        config = GPT2Config(tokenizer.vocab_size, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        save_model(tmp_path / folder, GPT2(config), tokenizer=tokenizer)
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")

    words, code, expected = BAD_INPUT[name]
    result = command(*words)
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    for word in expected:
        assert word in result.err
    message = [line for line in result.err.splitlines() if line.startswith(("linnet:", "Error:"))]
    assert len(message) == 1


def test_a_second_process_on_the_same_run_exits_6(command: Command, text: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "text").mkdir(parents=True)
    with Lock(tmp_path / "runs" / "text" / "lock"):
        refused = command("train", "text", "data.source=notes.txt", "train.steps=2", *TINY)
    assert refused.code == 6
    assert f"pid {os.getpid()}" in refused.err


def test_what_diverges_exits_3_and_keeps_its_checkpoint(command: Command, text: Path, tmp_path: Path) -> None:
    rate = ["train.learning_rate=1e30", "train.grad_clip=0", "train.warmup_steps=0"]
    diverged = command(
        "train", "text", "data.source=notes.txt", "train.steps=40", *TINY, *rate, "train.save_every=1"
    )
    assert diverged.code == 3, diverged.err
    assert "train.learning_rate" in diverged.err
    assert list((tmp_path / "runs/text/checkpoints").iterdir())


def test_help_answers_at_once_and_torch_is_imported_late() -> None:
    modules = "import sys; from linnet import cli; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
    subprocess.run(
        [sys.executable, "-c", "import sys, linnet; assert 'torch' not in sys.modules"], check=True
    )
    helped = subprocess.run(
        [sys.executable, "-m", "linnet", "--help"], capture_output=True, text=True, check=True
    )
    for verb in ("demo", "prepare", "train", "generate", "runs"):
        assert f"  {verb} " in helped.stdout
    for later in ("judge", "doctor"):
        assert later not in helped.stdout


def test_the_python_interface_takes_the_same_keys(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = linnet.train(
        "scratch",
        data={"source": str(text)},
        tokenizer={"vocab_size": 300},
        model={"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 32},
        train={"steps": 3, "batch_size": 4, "log_every": 2},
        sample={"max_new_tokens": 0},
        run="mine",
    )
    assert run.dir == Path("mine")
    assert [row["step"] for row in run.metrics() if "loss" in row] == [2, 3]
    model = run.load()
    first = model.generate("The bird", max_new_tokens=10, seed=1)
    assert first == "".join(model.stream("The bird", max_new_tokens=10, seed=1))
    started = time.perf_counter()
    with pytest.raises(linnet.errors.UsageError, match=r"train\.stepz"):
        linnet.train("scratch", train={"stepz": 3})
    assert time.perf_counter() - started < 5


def test_tokens_on_disk_are_the_text(command: Command, text: Path) -> None:
    report = json.loads(command("prepare", "text", "data.source=notes.txt", "--json", *TINY).out)
    tokens = np.fromfile(Path(report["folder"]) / "tokens.bin", dtype="<u2")
    tokenizer = AutoTokenizer.from_pretrained(Path(report["folder"]) / "tokenizer")
    assert TEXT.startswith(tokenizer.decode(tokens[1:].tolist()))


def test_preparing_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("one two three\n" * 200)
    code = "import sys; from linnet import preparing; preparing.prepare('scratch', overrides=sys.argv[1:]); "
    code += "print(sorted({'torch', 'datasets', 'transformers', 'awkward'} & sys.modules.keys()))"
    keys = [f"data.source={tmp_path / 'data.txt'}", f"data.prepared={tmp_path / 'prepared'}"]
    done = subprocess.run([sys.executable, "-c", code, *keys], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
