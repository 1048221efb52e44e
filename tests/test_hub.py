"""Models and tokenizers from the hub, with the real client against a hub on this machine."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import save_model
from linnet.tokenizer import train_bpe
from tests import hub_repositories as repositories
from tests.loopback_hub import LoopbackHub, run_python

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
    *words: str, home: Path, endpoint: str, largest_file: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    code = "from linnet.__main__ import main; main()"
    if largest_file is not None:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file},) * 2); {code}"
    return run_python(code, *words, home=home, endpoint=endpoint, **env)


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


CLIENTS = """
import json, sys
import datasets, transformers

datasets.config.USE_PARQUET_EXPORT = False  # It would ask datasets-server.HOST.
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
counts = {}
for name, config in (
    ("ArtifactAI/arxiv-math-instruct-50k", None),
    ("HuggingFaceH4/ultrachat_200k", None),
    ("ccdv/pubmed-summarization", "document"),
    ("someone/table", None),
):
    splits = datasets.load_dataset(name, config, revision="main")
    for split, rows in splits.items():
        streamed = datasets.load_dataset(name, config, revision="main", split=split, streaming=True)
        assert list(streamed) == list(rows), (name, split)
        counts[f"{name} {split}"] = len(rows)
try:
    datasets.load_dataset("armanc/scientific_papers", "pubmed")
except RuntimeError as error:
    counts["script"] = str(error)
branch = "refs/convert/parquet"
files = "arxiv/partial-train/*.parquet"
papers = datasets.load_dataset("armanc/scientific_papers", data_files=files, revision=branch, split="train")
counts["papers"] = len(papers)
tokenizer = transformers.AutoTokenizer.from_pretrained("openai-community/gpt2")
model = transformers.AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
loss = model(**(batch := tokenizer("The linnet sings.", return_tensors="pt")), labels=batch["input_ids"]).loss
counts["loss"] = float(loss)
print("COUNTS" + json.dumps(counts))
"""


@pytest.mark.slow
def test_the_clients_of_the_hub_take_this_one_for_theirs(tmp_path: Path) -> None:
    """The fake is only worth something while the real clients work with it, alone."""
    root = tmp_path / "hub"
    for build in (repositories.math, repositories.chat, repositories.papers, repositories.papers_mirror):
        build(root)
    repositories.gpt2(root)
    table = root / "datasets" / "someone" / "table"
    table.mkdir(parents=True)
    (table / "train.csv").write_text("text,number\none,1\ntwo,2\n")
    with LoopbackHub(root, page=2) as hub:
        env = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = run_python(CLIENTS, home=tmp_path, endpoint=hub.endpoint, **env)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.rpartition("COUNTS")[2])
    assert counts["ArtifactAI/arxiv-math-instruct-50k train"] == 60
    assert counts["HuggingFaceH4/ultrachat_200k train_sft"] == 60
    assert counts["HuggingFaceH4/ultrachat_200k test_gen"] == 15
    assert counts["ccdv/pubmed-summarization validation"] == 12
    assert counts["someone/table train"] == 2
    assert counts["papers"] == 60
    assert "Dataset scripts are no longer supported" in counts["script"]
    assert 5.5 < counts["loss"] < 6.5  # ln 400 = 5.99: it knows nothing yet


def test_a_gated_model_says_what_to_do(tmp_path: Path) -> None:
    publish(tmp_path / "hub" / "someone" / "tiny")
    with LoopbackHub(tmp_path / "hub", gated={"someone/tiny": "hf_right"}) as hub:
        failed = linnet("generate", "someone/tiny", home=tmp_path, endpoint=hub.endpoint)
    assert failed.returncode == 1
    assert "set HF_TOKEN or run `hf auth login`" in " ".join(failed.stderr.split())
