"""The arithmetic of memory: what it says a block keeps is what it keeps, and what is chosen by it fits."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from linnet import device
from linnet.config import LoraConfig, TrainConfig
from linnet.device import Choice
from linnet.errors import OutOfMemoryError, UsageError
from linnet.model import attention
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.lora import add_adapters
from linnet.training.fitting import choose_fitting, fits_in
from linnet.training.memory import (
    Training,
    holes,
    host_bytes,
    kept_of_a_block,
    most_rows,
    needed,
    peak,
    share_bytes,
)

SHAPE = GPT2Config(vocab_size=64, n_positions=160, n_embd=64, n_layer=2, n_head=2)
GPT2_124M = Training(GPT2Config(), "cuda", "bf16", block_size=1024, rows=8, batch_size=8)


def saved_bytes(model: GPT2, *, rows: int, tokens: int, bf16: bool) -> int:
    """Bytes of what autograd saves in the second block, each storage once, its weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []
    inside = False

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in weights and tensor.shape[0] != 4 * SHAPE.n_embd:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    def run(block: torch.nn.Module, x: Tensor, **rest: Any) -> Tensor:
        nonlocal inside
        inside = block is model.h[1]
        out: Tensor = block(x, **rest)
        inside = False
        return out

    model.run_block = run
    with (
        saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext(),
    ):
        model(torch.zeros(rows, tokens, dtype=torch.long))
    return sum(found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "lora", [{}, {"rank": 2}, {"rank": 2, "targets": ["c_attn"]}, {"rank": 2, "base": "int8"}]
)
def test_a_block_keeps_what_the_formula_says(precision: str, lora: Mapping[str, Any]) -> None:
    model, config = GPT2(SHAPE, seed=1), LoraConfig(**lora)
    if lora:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        add_adapters(model, rank=2, alpha=4.0, targets=config.targets, base=config.base, dtype=dtype)
    rows, tokens = 4, 160
    training = Training(SHAPE, "cpu", precision, block_size=tokens, rows=rows, batch_size=rows, lora=config)
    assert saved_bytes(model, rows=rows, tokens=tokens, bf16=precision == "bf16") == pytest.approx(
        kept_of_a_block(training), rel=0.06
    )


def test_the_peak_grows_with_rows_and_shrinks_with_each_saving() -> None:
    sizes = [needed(replace(GPT2_124M, rows=rows)) for rows in (1, 2, 4, 8)]
    assert sizes[:3] == sorted(sizes[:3])  # 8 of 8 rows hold no gradients of earlier micro-batches
    thrifty = replace(GPT2_124M, recompute=True)
    assert needed(thrifty) < needed(GPT2_124M)
    assert needed(replace(thrifty, offload=True)) < needed(thrifty) / 2
    adapters = replace(thrifty, lora=LoraConfig(rank=8))
    assert (
        needed(replace(adapters, lora=LoraConfig(rank=8, base="int8"))) < needed(adapters) < needed(thrifty)
    )
    assert host_bytes(thrifty) == 0
    assert host_bytes(replace(thrifty, offload=True)) == 18 * GPT2Config().parameters
    assert sum(peak(thrifty).values()) == needed(thrifty) + (500 << 20)
    assert holes(thrifty) == 0 < holes(replace(thrifty, device="cpu"))


@pytest.mark.parametrize("size", [1, 100, 128, 129, 300, 1024])
def test_shares_are_those_of_the_blocks(size: int) -> None:
    training = replace(GPT2_124M, device="cpu", block_size=size, rows=3)
    blocks = attention._blocks(3, size, lengths=None, n_head=12, dtype=torch.bfloat16)
    shares = sum(3 * 12 * block.mask.shape[0] * block.mask.shape[1] for block in blocks)
    assert share_bytes(training) == 2 * shares
    assert share_bytes(replace(training, block_size=10**12)) > 0  # No loop over the blocks.


def test_most_rows_is_the_largest_that_fits() -> None:
    free = needed(replace(GPT2_124M, rows=3))
    assert most_rows(GPT2_124M, free=free) == 3
    assert most_rows(GPT2_124M, free=free - 1) == 2
    assert most_rows(GPT2_124M, free=1 << 60) == 8
    assert most_rows(GPT2_124M, free=0) == 0


def chosen(free: float, training: Training = GPT2_124M, **keys: Any) -> dict[str, Any]:
    choices = choose_fitting(TrainConfig(steps=1, **keys), training, free=int(free), kept={})
    assert all(choice.reason for choice in choices.values())
    return {key: choice.value for key, choice in choices.items() if key != "memory"}


def test_from_the_fastest_to_the_thriftiest() -> None:
    def names(free: float, **keys: Any) -> tuple[int, str, str]:
        found = chosen(free, **keys)
        return found["micro_batch_size"], found["activation_checkpointing"], found["offload"]

    assert names(80e9) == (8, "off", "off")
    assert names(4.2e9) == (2, "off", "off")  # fewer rows before anything is computed twice
    rows, checkpointing, offload = names(3.3e9)
    assert (checkpointing, offload) == ("on", "off")
    assert rows > 1
    assert names(2.4e9)[1:] == ("off", "on")
    assert names(1e9)[1:] == ("on", "on")
    assert names(4.2e9, micro_batch_size=8)[:2] == (8, "on")
    assert names(80e9, activation_checkpointing="on", offload="on") == (8, "on", "on")
    for free in (1e9, 2.4e9, 3.3e9, 4.2e9):
        found = names(free)
        settings = replace(GPT2_124M, rows=found[0], recompute=found[1] == "on", offload=found[2] == "on")
        assert fits_in(settings, int(free))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"A single row of 1,024 tokens takes .* What fits: .*block_size="
    ) as error:
        chosen(0.7e9)
    assert error.value.exit_code == 5
    with pytest.raises(OutOfMemoryError, match="Take a smaller model"):
        chosen(1e8)
    with pytest.raises(UsageError, match=r"train\.offload=on: muon.*offload=off"):
        chosen(80e9, replace(GPT2_124M, optimizer="muon"), offload="on")
    on_cpu = choose_fitting(
        TrainConfig(steps=1, offload="on"), replace(GPT2_124M, device="cpu"), free=1 << 40, kept={}
    )
    assert on_cpu["offload"] == Choice("off", "a CPU's memory holds them in any case")


def test_offload_is_not_for_a_machine_that_could_not_hold_it() -> None:
    """18 bytes a weight are 2.24 GB; the system would end the process without a word."""

    def offload(host: float, requested: str = "auto") -> Choice:
        config = TrainConfig(steps=1, offload=requested, micro_batch_size=1)
        found = choose_fitting(config, GPT2_124M, free=int(2.4e9), kept={}, host=int(host))
        return found["offload"]

    assert offload(3e9).value == "on"
    with pytest.raises(OutOfMemoryError):
        offload(2.3e9)
    with pytest.raises(
        UsageError, match=r"offload=on: it takes 2\.2 GB of the machine's memory, and 2\.3 GB are free"
    ):
        offload(2.3e9, "on")


def test_a_run_that_goes_on_keeps_its_settings() -> None:
    kept = {"micro_batch_size": 2, "activation_checkpointing": "on", "offload": "off"}
    choices = choose_fitting(TrainConfig(steps=1), GPT2_124M, free=int(80e9), kept=kept)
    assert choices["micro_batch_size"] == Choice(2, "as when the run began")
    assert choices["activation_checkpointing"].value == "on"


def test_control_groups_limit_what_is_free(tmp_path: Path) -> None:
    own, inner = tmp_path / "own", tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    own.write_text("0::/slice/job\n")
    for folder, limit in ((inner, "max"), (tmp_path / "slice", "5000")):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 2000\ninactive_file 700\n")
    assert device._free_of_groups(tmp_path, own) == [2700]
    own.write_text("1:memory:/old\n")
    assert device._free_of_groups(tmp_path, own) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the short form is for a CPU")
def test_predicted_within_a_tenth_of_measured() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    done = subprocess.run(
        [sys.executable, str(script), "--short", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ratios = {row["name"]: row["median"] for row in json.loads(done.stdout) if row["name"].endswith("-ratio")}
    assert len(ratios) == 2
    assert all(abs(ratio - 1) < 0.1 for ratio in ratios.values()), done.stderr
