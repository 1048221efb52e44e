"""`linnet export RUN --to hub owner/name`: the real client sends a model to a hub on this machine, all or nothing.

Most run in this process, with the endpoint set where the client keeps what it read from the environment: a process of
its own costs seconds. What is killed, and what is loaded back, runs in one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import linnet
from linnet.track.card import unseal
from tests.commands import Command, runner
from tests.loopback_hub import GUARD, LoopbackHub, run_python

# Of huggingface_hub's own request with a file, in the httpx that it brings.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPOSITORY = "me/birds"
TOKEN = {"HF_TOKEN": "mine", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
EXPORT = ("export", "runs/birds", REPOSITORY, "--to", "hub")
MAIN = "from linnet.__main__ import main; main()"
SENT = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "loss.png"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a tiny model of questions and answers; nobody writes there."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [{"question": f"Who sings {i}?", "answer": f"The linnet sings {i % 7}."} for i in range(80)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    linnet.train(
        "math",
        run=folder / "runs" / "birds",
        data={"source": str(folder / "rows.jsonl"), "prepared": str(folder / "store")},
        model={"init_from": "scratch", "n_layer": 1, "n_head": 2, "n_embd": 16},
        tokenizer={"name": "bpe", "vocab_size": 300},
        train={"steps": 6, "batch_size": 4, "eval_every": 2, "block_size": 64},
        sample={"max_new_tokens": 4},
    )
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the run."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub", writers={"mine": "me"}) as hub:
        yield hub


@pytest.fixture
def command(
    home: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """`linnet` in this process and the folder `home`, with the token of the owner."""
    from huggingface_hub import constants

    monkeypatch.chdir(home)
    monkeypatch.setenv("HF_TOKEN", TOKEN["HF_TOKEN"])
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return runner(monkeypatch, capfd)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_whole(hub: LoopbackHub, model: Path) -> None:
    """The repository has just the files of the model folder."""
    sent = files_of(hub.root / REPOSITORY)
    del sent[".gitattributes"]
    assert sent == files_of(model)


def test_a_run_is_exported_and_loads_by_its_name(home: Path, hub: LoopbackHub, command: Command) -> None:
    """Once here, once from the hub: the same greedy tokens, in Linnet and in transformers."""
    done = command(*EXPORT)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        f"The same by hand: hf upload {REPOSITORY} runs/birds/model .",
        f"{hub.endpoint}/{REPOSITORY}",
    ]
    assert set(files_of(home / "runs/birds/model")) == SENT
    check_whole(hub, home / "runs/birds/model")
    assert len(hub.commits) == 1
    assert not any("checkpoint" in request or "rows" in request for request in hub.requests)
    question = "Who sings 3?"
    here = linnet.load(home / "runs/birds").generate(question, max_new_tokens=12, temperature=0)
    # The lines that the card gives to paste, as they are but for the sampling.
    card = (hub.root / REPOSITORY / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    assert f'name = "{REPOSITORY}"' in snippet
    greedy = snippet.replace("do_sample=True, temperature=0.8, top_p=0.95", "do_sample=False")
    greedy = greedy.replace("What is the sum of the first 100 whole numbers?", question).replace("64", "12")
    assert greedy.count(question) == greedy.count("do_sample=False") == greedy.count("=12") == 1
    words = ("generate", REPOSITORY, question, "--temperature", "0", "--max-new-tokens", "12")
    there = run_python(f"{greedy}\n{MAIN}", *words, home=home, endpoint=hub.endpoint)
    assert there.returncode == 0, there.stderr
    assert there.stdout == f"{here}\n{here}\n"


def test_the_line_by_hand_does_the_same(home: Path, hub: LoopbackHub, command: Command) -> None:
    """With huggingface_hub's own command."""
    report = command(*EXPORT, "--json", "--private").report
    assert report["command"] == f"hf upload {REPOSITORY} runs/birds/model . --private"
    assert set(report["files"]) == SENT
    assert report["bytes"] == sum(path.stat().st_size for path in (home / "runs/birds/model").iterdir())
    assert hub.private == {REPOSITORY}
    sent = files_of(hub.root / REPOSITORY)
    shutil.rmtree(hub.root / REPOSITORY)
    code = "import sys; from huggingface_hub.cli.hf import main; sys.argv[0] = 'hf'; main()"
    words = report["command"].split()[1:]
    done = run_python(code, *words, home=home, endpoint=hub.endpoint, **TOKEN)
    assert done.returncode == 0, done.stderr
    assert files_of(hub.root / REPOSITORY) == sent


def test_only_the_files_of_the_model_are_sent(home: Path, hub: LoopbackHub, command: Command) -> None:
    """Also of a folder that somebody keeps other things in; the line by hand leaves out the same."""
    model = home / "runs/birds/model"
    (model / "data.jsonl").write_text("private")
    (model / "notes").mkdir()
    (model / "notes" / "data.txt").write_text("private")
    (model / ".cache").mkdir()
    done = command(*EXPORT)
    assert done.code == 0, done.err
    assert "Not sent, since a model does not need it: data.jsonl, notes/." in done.err
    assert set(files_of(hub.root / REPOSITORY)) == SENT | {".gitattributes"}
    assert "--exclude data.jsonl --exclude 'notes/*'" in done.out


def test_what_is_there_is_not_sent_again(home: Path, hub: LoopbackHub, command: Command) -> None:
    assert command(*EXPORT).code == 0
    weights = (home / "runs/birds/model/model.safetensors").stat().st_size
    assert hub.sent_bytes == weights
    again = command(*EXPORT)
    assert again.code == 0, again.err
    assert hub.sent_bytes == weights
    assert len(hub.commits) == 1, "nothing new makes no commit"
    (hub.root / REPOSITORY / "pytorch_model.bin").write_bytes(b"of an older model")
    card = home / "runs/birds/model/README.md"
    card.write_text(card.read_text().replace("## Limits", "## What I think of it\n\nFine.\n\n## Limits"))
    edited = command(*EXPORT)
    assert edited.code == 0, edited.err
    assert "README.md was changed by hand and is sent as it is" in edited.err
    assert f"{REPOSITORY} also holds pytorch_model.bin" in edited.err
    assert (hub.root / REPOSITORY / "README.md").read_bytes() == card.read_bytes()
    assert (hub.sent_bytes, len(hub.commits)) == (weights, 2)


def test_large_files_may_go_in_parts(home: Path, hub: LoopbackHub, command: Command) -> None:
    hub.part_size = 30_000
    done = command(*EXPORT)
    assert done.code == 0, done.err
    assert len([request for request in hub.requests if request.startswith("PUT")]) > 1
    check_whole(hub, home / "runs/birds/model")


def start(home: Path, hub: LoopbackHub) -> subprocess.Popen[bytes]:
    settings = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint, **TOKEN}
    settings |= {"PYTHONPATH": os.pathsep.join([str(GUARD), str(GUARD.parent.parent)])}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *EXPORT],
        cwd=home,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    "kills",
    [
        2,
        pytest.param(10, marks=pytest.mark.slow),
        pytest.param(50, marks=[pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(1200)]),
    ],
)
def test_killed_anywhere_the_repository_has_nothing_or_all(
    home: Path, hub: LoopbackHub, command: Command, kills: int
) -> None:
    """E1. Killed at places spread over the whole upload, then exported again: complete, nothing sent twice."""
    model = home / "runs/birds/model"
    assert command(*EXPORT).code == 0  # How many events there are.
    events = hub.events
    assert events > 15
    for number in range(kills):
        at = 1 + number * (events - 1) // max(1, kills - 1)
        shutil.rmtree(hub.root)
        hub.root.mkdir()
        hub.stored.clear()
        child: list[subprocess.Popen[bytes]] = []
        hub.strike(at, lambda child=child: child[0].send_signal(signal.SIGKILL))  # type: ignore[misc]
        child.append(start(home, hub))
        assert child[0].wait(60) == -signal.SIGKILL, f"event {at} of {events}"
        folder = hub.root / REPOSITORY
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        assert names in (set(), {".gitattributes"}, SENT | {".gitattributes"}), f"event {at} of {events}"
        assert set(files_of(model)) == SENT, "nothing of the upload is left in the model folder"
        again = command(*EXPORT)
        assert again.code == 0, again.err
        check_whole(hub, model)
        assert len(hub.stored) == len(set(hub.stored)) == 1, f"event {at} of {events}: sent twice"


def test_a_cut_connection_is_a_sentence_and_goes_on(home: Path, hub: LoopbackHub, command: Command) -> None:
    """At the commit, which the client does not try again by itself; the weights have arrived before."""
    assert command(*EXPORT).code == 0
    shutil.rmtree(hub.root / REPOSITORY)
    shutil.rmtree(hub.root / ".lfs")
    last = hub.events
    sent = hub.sent_bytes
    hub.strike(last - 1, lambda: None)
    cut = command(*EXPORT)
    assert cut.code == 1, cut.err
    message = cut.err.splitlines()[-1]
    assert message.startswith(f"linnet: {REPOSITORY} did not get the model: the connection broke (")
    assert message.endswith("; the same command goes on, and sends no large file again that has arrived.")
    assert command(*EXPORT).code == 0
    assert hub.sent_bytes == 2 * sent, "once before, once in the upload that was cut"
    check_whole(hub, home / "runs/birds/model")


def test_a_piece_that_is_cut_is_sent_again_by_itself(home: Path, hub: LoopbackHub, command: Command) -> None:
    hub.strike(9, lambda: None)
    done = command(*EXPORT)
    assert done.code == 0, done.err
    check_whole(hub, home / "runs/birds/model")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere", REPOSITORY, "--to", "hub"), 1, "There is no folder nowhere; name a run"),
        (("runs", REPOSITORY, "--to", "hub"), 1, "runs holds no model"),
        (("runs/new", REPOSITORY, "--to", "hub"), 1, "The run runs/new has no model yet"),
        (
            ("runs/birds", "birds", "--to", "hub"),
            2,
            "'birds' is no name for a repository on the hub; it is owner/name",
        ),
        (("runs/birds", "me/a b", "--to", "hub"), 2, "'me/a b' is no name"),
        (("runs/birds", "me/a..b", "--to", "hub"), 2, "'me/a..b' is no name"),
        (("runs/birds", "a.gguf", "--to", "gguf"), 2, "--to gguf is no place to export to; there is: hub."),
        (("pickled", REPOSITORY, "--to", "hub"), 1, "pickled has no weights that can be sent"),
    ],
)
def test_mistakes_are_one_sentence(
    home: Path, command: Command, words: tuple[str, ...], code: int, message: str
) -> None:
    (home / "runs" / "new").mkdir()
    (home / "runs" / "new" / "recipe.toml").write_text("")
    (home / "pickled").mkdir()
    (home / "pickled" / "config.json").write_text("{}")
    (home / "pickled" / "pytorch_model.bin").write_text("")
    done = command("export", *words)
    assert done.code == code, done.err
    assert done.err.splitlines()[-1].startswith(f"linnet: {message}")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"HF_TOKEN": "", "HF_TOKEN_PATH": "none"},
            "There is no token for the hub; run `hf auth login`, or set HF_TOKEN",
        ),
        ({"HF_TOKEN": "wrong"}, "the hub does not know your token"),
        ({"HF_TOKEN": "theirs"}, "your token may not write there; take one with write access to me"),
        ({"ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached; check the network"),
        ({"HF_HUB_OFFLINE": True}, "HF_HUB_OFFLINE is set; unset it"),
    ],
)
def test_no_right_and_no_network_are_one_sentence(
    home: Path,
    hub: LoopbackHub,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, Any],
    message: str,
) -> None:
    from huggingface_hub import constants

    hub.writers["theirs"] = "somebody"
    for key, value in env.items():
        if key == "HF_TOKEN":
            monkeypatch.setenv(key, value)
        else:
            monkeypatch.setattr(constants, key, value)
    before = (home / "runs/birds/model/README.md").read_bytes()
    done = command(*EXPORT)
    assert (home / "runs/birds/model/README.md").read_bytes() == before, (
        "no lines for a repository that is not there"
    )
    assert done.code == 1, done.out
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (hub.root / REPOSITORY).exists()


def test_a_card_that_the_hub_refuses_is_said_before_anything_is_sent(
    home: Path, hub: LoopbackHub, command: Command
) -> None:
    card = home / "runs/birds/model/README.md"
    card.write_text("---\nbase_model: no name at all\n---\nMine.\n")
    done = command(*EXPORT)
    assert done.code == 1
    assert "it refuses the metadata at the head of README.md" in done.err.splitlines()[-1]
    assert (hub.sent_bytes, hub.commits) == (0, [])


def test_a_run_in_training_is_not_exported(home: Path, command: Command) -> None:
    with linnet.files.Lock(home / "runs/birds/lock"):
        done = command(*EXPORT)
    assert done.code == 6, done.err
    assert f"pid {os.getpid()}" in done.err


def test_a_model_folder_alone_is_exported(home: Path, hub: LoopbackHub, command: Command) -> None:
    """Without its run: the card is the one that lies there, with the repository's name in it."""
    shutil.move(home / "runs/birds/model", home / "alone")
    shutil.rmtree(home / "runs")
    done = command("export", "alone", "me/other", "--to", "hub")
    assert done.code == 0, done.err
    card = unseal(hub.root / "me/other/README.md")
    assert card is not None
    assert card.address == "me/other"
    assert "linnet generate me/other " in card.text
