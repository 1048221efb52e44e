"""Models and tokenizers from the hub, with the real client against a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import save_model
from linnet.tokenizer import train_bpe
from tests.loopback_hub import LoopbackHub

TEXT = "The linnet learns its song by listening. " * 40


def publish(folder: Path) -> None:
    """A tiny gpt2 in a repository, beside things that nobody may open."""
    folder.mkdir(parents=True)
    tokenizer = train_bpe(iter([TEXT]), vocab_size=280)
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    save_model(folder, GPT2(config, seed=0), tokenizer=tokenizer)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit('code from a model folder ran')")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")


def linnet(
    *words: str, home: Path, endpoint: str, largest_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; huggingface_hub reads its settings when it is imported, hence a process of its own."""
    env = os.environ | {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint}
    code = "from linnet.cli import main; main()"
    if largest_file is not None:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file},) * 2); {code}"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(
        command, cwd=home, env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("place", ["gpt2", "openai-community/gpt2"])
def test_gpt2_comes_from_the_hub_once_and_then_from_the_cache(tmp_path: Path, place: str) -> None:
    publish(tmp_path / "hub" / place)
    words = ("generate", "gpt2", "The linnet", "--max-new-tokens", "8", "--seed", "1")
    with LoopbackHub(tmp_path / "hub") as hub:
        first = linnet(*words, home=tmp_path, endpoint=hub.endpoint)
        assert first.returncode == 0, first.stderr
        fetched = " ".join(hub.requests)
        asked = len(hub.requests)
        second = linnet(*words, home=tmp_path, endpoint=hub.endpoint)
        assert len(hub.requests) == asked, "the cache holds it: the hub must not be asked again"
    offline = linnet(*words, home=tmp_path, endpoint=hub.endpoint)
    assert first.stdout == second.stdout == offline.stdout
    assert "model.safetensors" in fetched
    for never in ("pytorch_model.bin", "modeling.py", "onnx/", "telemetry", "agent"):
        assert never not in fetched


def test_an_interrupted_download_is_completed(tmp_path: Path) -> None:
    place = tmp_path / "hub" / "someone" / "tiny"
    publish(place)
    weights = load_file(place / "model.safetensors")
    names = sorted(weights)
    shards = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in (0, 1)}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, place / shard)
    (place / "model.safetensors").unlink()
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    words = ("generate", "someone/tiny", "The linnet", "--max-new-tokens", "4", "--temperature", "0")
    with LoopbackHub(tmp_path / "hub") as hub:
        first = linnet(*words, home=tmp_path, endpoint=hub.endpoint)
        assert first.returncode == 0, first.stderr
        (snapshot,) = (tmp_path / "hf" / "hub").glob("models--*/snapshots/*")
        for lost in (list(shards)[1], "tokenizer.json"):
            (snapshot / lost).unlink()
            # The list of a repository's files, which only newer clients keep, and no cache that they did not fill.
            shutil.rmtree(snapshot.parents[1] / "trees", ignore_errors=True)
            again = linnet(*words, home=tmp_path, endpoint=hub.endpoint)
            assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
            assert (snapshot / lost).is_file()
    (snapshot / next(iter(shards))).unlink()
    offline = linnet(*words, home=tmp_path, endpoint=hub.endpoint)
    assert offline.returncode == 1
    assert "Traceback" not in offline.stderr


def test_a_repository_without_weights_says_so(tmp_path: Path) -> None:
    place = tmp_path / "hub" / "someone" / "tiny"
    publish(place)
    (place / "model.safetensors").unlink()
    with LoopbackHub(tmp_path / "hub") as hub:
        failed = linnet("generate", "someone/tiny", home=tmp_path, endpoint=hub.endpoint)
    assert failed.returncode == 1
    assert "lacks model.safetensors" in failed.stderr.replace("\n", " ")


def test_a_download_that_the_disk_cannot_take_is_an_error_of_the_disk(tmp_path: Path) -> None:
    publish(tmp_path / "hub" / "someone" / "tiny")
    with LoopbackHub(tmp_path / "hub") as hub:
        failed = linnet("generate", "someone/tiny", home=tmp_path, endpoint=hub.endpoint, largest_file=4096)
    assert failed.returncode == 4, failed.stderr
    message = " ".join(failed.stderr.split())
    assert "The file is larger than the system allows" in message
    assert "the hub did not give it" not in message


def test_fine_tuning_takes_model_and_tokenizer_from_the_hub(tmp_path: Path) -> None:
    publish(tmp_path / "hub" / "someone" / "tiny")
    (tmp_path / "data.txt").write_text("".join(f"Bird {i} sings a song.\n" for i in range(50)))
    with LoopbackHub(tmp_path / "hub") as hub:
        done = linnet(
            *("train", "lines", "data.source=data.txt", "model.init_from=someone/tiny", "train.steps=3"),
            home=tmp_path,
            endpoint=hub.endpoint,
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "lines" / "model" / "model.safetensors").is_file()


def test_without_a_hub_one_sentence_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("One line.\nAnother line.\n" * 20)
    failed = linnet("train", "lines", "data.source=data.txt", home=tmp_path, endpoint="http://127.0.0.1:9")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "model.init_from=scratch" in failed.stderr
