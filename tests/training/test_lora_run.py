"""A training with adapters through the command line: what it leaves, how it goes on, what it refuses."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from linnet.model.lora import adapter_state, add_adapters
from linnet.model.pretrained import load_model, save_model
from tests.model.examples import TEXT, tiny, tokenizer
from tests.training.test_resume import Result, files_of, folder_with_text, result_of, saved_steps
from tests.warm import Warm

transformers.utils.logging.disable_progress_bar()
STEPS = 6
TRAIN = (
    "train",
    "text",
    "data.source=book.txt",
    "data.prepared=store",
    "model.init_from=base",
    "model.lora.rank=2",
    "model.lora.alpha=3",
    "model.dropout=0.1",
    f"train.steps={STEPS}",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.block_size=16",
    "train.learning_rate=1e-2",
    "train.warmup_steps=1",
    "train.save_every=2",
    "train.eval_every=3",
    "train.eval_tokens=100",
    'sample.prompts=["The linnet"]',
    "sample.max_new_tokens=4",
    "--run",
    "run",
)
BASES = {"fp32": ("train.precision=fp32",), "int8": ("train.precision=bf16", "model.lora.base=int8")}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a text and a small published-form GPT-2."""
    with folder_with_text() as folder:
        write_inputs(folder)
        yield folder


def write_inputs(folder: Path) -> None:
    (folder / "book.txt").write_text(TEXT * 4)
    (folder / "base").mkdir()
    save_model(folder / "base", tiny(), tokenizer=tokenizer())


@pytest.fixture(scope="module", params=[pytest.param("fp32", marks=pytest.mark.slow), "int8"])
def whole(warm: Warm, request: pytest.FixtureRequest) -> Iterator[tuple[Path, tuple[str, ...], Result]]:
    """A run that was never stopped: its folder, its command, its result."""
    argv = (*TRAIN[:-2], *BASES[request.param], *TRAIN[-2:])
    with folder_with_text() as folder:
        write_inputs(folder)
        code, output = warm.run(*argv, folder=folder)
        assert code == 0, output
        yield folder, argv, result_of(folder / "run", step=STEPS)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"point": "forward", "count": 8, "signals": [signal.SIGTERM]}, marks=pytest.mark.slow),
        pytest.param({"point": "forward", "count": 7}, marks=pytest.mark.slow),
        {"point": "operation", "save": 2, "count": 9},
        pytest.param({"point": "model", "count": 2}, marks=pytest.mark.slow),
    ],
    ids=["a signal", "kill -9", "kill -9 in a save", "kill -9 between adapter and model"],
)
def test_it_goes_on_with_the_same_bits(
    warm: Warm, folder: Path, whole: tuple[Path, tuple[str, ...], Result], faults: dict
) -> None:
    there, argv, result = whole
    code, output = warm.run(*argv, folder=folder, faults=faults)
    assert code in (143, -signal.SIGKILL), output
    code, output = warm.run(*argv, folder=folder)
    assert code == 0, output
    assert result_of(folder / "run", step=STEPS) == result
    adapters = [files_of(place / "run" / "adapter") for place in (there, folder)]
    assert adapters[0] == adapters[1]
    assert not list((folder / "run").rglob(".*")), "no leftovers"


def test_checkpoints_hold_the_adapters_alone(whole: tuple[Path, tuple[str, ...], Result]) -> None:
    checkpoint = whole[0] / "run" / "checkpoints" / f"step-{STEPS:08d}"
    weights = load_file(checkpoint / "weights.safetensors")
    assert {name.rpartition(".")[2] for name in weights} == {"lora_A", "lora_B"}
    assert len(weights) == 2 * 4 * 2
    assert all(weights[name].any() for name in weights), "B is trained"
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert {name.partition(".")[2] for name in moments} == weights.keys()
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size < (whole[0] / "base" / "model.safetensors").stat().st_size


@torch.no_grad()
def test_peft_makes_model_of_base_and_adapter(whole: tuple[Path, tuple[str, ...], Result]) -> None:
    """In every precision: the sum is that of the base's own weights. model/ and adapter/ are those of one step."""
    folder = whole[0]
    ids = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(3))
    model = load_model(folder / "run" / "model")
    expected = model.logits(model(ids))
    adapted = load_model(folder / "base")
    add_adapters(adapted, rank=2, alpha=3, targets=["c_attn", "c_proj", "c_fc"])
    weights = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in adapter_state(adapted).items():
        tensor.copy_(weights[f"base_model.model.transformer.{name}.weight"])
    torch.testing.assert_close(adapted.logits(adapted(ids)), expected, atol=1e-4, rtol=0)
    assert (load_model(folder / "base")(ids) - model(ids)).abs().max() > 1e-3
    config = json.loads((folder / "run" / "adapter" / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 3, "base")

    peft = pytest.importorskip("peft", reason="peft is missing: the oracle of adapter/")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # peft's own
        theirs = peft.PeftModel.from_pretrained(base, folder / "run" / "adapter").eval()
    torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=0)


def test_card_and_verbs(warm: Warm, whole: tuple[Path, tuple[str, ...], Result]) -> None:
    folder = whole[0]
    card = (folder / "run" / "model" / "README.md").read_text()
    matrices = (32 + 96) + (32 + 32) + (32 + 128) + (128 + 32)
    assert f"{2 * 2 * matrices:,} trained parameters" in card
    assert "**Adapters**: LoRA of rank 2, alpha 3, on c_attn, c_proj, c_fc," in card.replace("\\", "")
    code, output = warm.run("generate", "run", "The linnet", "--seed", "1", folder=folder)
    assert code == 0, output
    code, output = warm.run("runs", ".", folder=folder)
    assert code == 0, output
    assert "run" in output
    code, output = warm.run("eval", "run", "--json", folder=folder)
    assert code == 0, output


def test_a_base_that_changed_is_refused(
    warm: Warm, folder: Path, whole: tuple[Path, tuple[str, ...], Result]
) -> None:
    """By the name of its file; with the old one, also from another place, the run goes on."""
    argv, result = whole[1:]
    faults = {"point": "forward", "count": 8, "signals": [signal.SIGTERM]}
    code, output = warm.run(*argv, folder=folder, faults=faults)
    assert code == 143, output
    before, weights = files_of(folder / "run"), folder / "base" / "model.safetensors"
    old = weights.read_bytes()
    changed = bytearray(old)
    changed[-1] ^= 1
    weights.write_bytes(changed)
    code, output = warm.run(*argv, folder=folder)
    assert code == 1, output
    assert output.splitlines()[-1].startswith(
        "linnet: base/model.safetensors is not what it was when run began"
    )
    shutil.move(folder / "base", folder / "away")
    code, output = warm.run(*argv, folder=folder)
    assert code == 1, output
    assert "which is gone" in output.splitlines()[-1]
    assert files_of(folder / "run") == before
    shutil.move(folder / "away", folder / "base")
    weights.write_bytes(old)
    code, output = warm.run(*argv, folder=folder)
    assert code == 0, output
    assert result_of(folder / "run", step=STEPS) == result


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        (("model.init_from=scratch",), 2, "model.lora.rank=2 trains adapters beside weights that exist"),
        (("train.optimizer=muon",), 2, "train.optimizer=muon is for whole matrices"),
        (("model.lora.targets=[]",), 2, "model.lora.targets is empty"),
    ],
)
def test_what_does_not_go_together(
    warm: Warm, folder: Path, keys: tuple[str, ...], code: int, message: str
) -> None:
    found, output = warm.run(*TRAIN, *keys, folder=folder)
    assert found == code, output
    assert output.splitlines()[-1].startswith(f"linnet: {message}"), output
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "field"), [("model.lora.rank=0", "rank"), ("model.lora.targets=c_fc", "targets")]
)
def test_adapters_of_another_shape_are_refused_even_where_changes_are_accepted(
    warm: Warm, folder: Path, key: str, field: str
) -> None:
    faults = {"point": "forward", "count": 6, "signals": [signal.SIGTERM]}
    code, output = warm.run(*TRAIN, folder=folder, faults=faults)
    assert code == 143, output
    for more in ((), ("--accept-changes",)):
        code, output = warm.run(*TRAIN, key, *more, folder=folder)
        assert code == 1, output
        assert output.splitlines()[-1].startswith(f"linnet: run cannot go on: its model.lora.{field} is ")
        assert "--accept-changes" not in output
    assert saved_steps(folder)[-1] == 3


@pytest.mark.slow
def test_a_fresh_machine_goes_on_from_the_mirror(
    warm: Warm, folder: Path, whole: tuple[Path, tuple[str, ...], Result]
) -> None:
    """adapter/ comes home as well."""
    there, argv, result = whole
    faults = {"point": "forward", "count": 10, "signals": [signal.SIGTERM]}
    code, output = warm.run(*argv, "--mirror", "drive", folder=folder, faults=faults)
    assert code == 143, output
    assert (folder / "drive" / "run" / "adapter" / "adapter_config.json").is_file()
    shutil.rmtree(folder / "run")
    code, output = warm.run(*argv, "--mirror", "drive", folder=folder)
    assert code == 0, output
    assert result_of(folder / "run", step=STEPS) == result
    assert files_of(folder / "run" / "adapter") == files_of(there / "run" / "adapter")
