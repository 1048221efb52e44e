"""Several processes that train one model: R8 to R11 of several ranks, with gloo.

The processes are started as torchrun starts them, and nobody watches over them; one test types torchrun itself.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from linnet.config import Recipe
from linnet.data.batches import Batch, share_of
from linnet.errors import UsageError
from linnet.model.pretrained import load_model, save_model
from linnet.training.plan import choose_batch_size
from linnet.training.shards import choose_parallel
from tests.model.examples import tiny, tokenizer
from tests.warm import ROOT, Warm

# Answers of very unequal length: each rank has another number of learned tokens.
ROWS = [
    {"question": f"what is {n} times {n}", "answer": "so " * (n * n % 11) + str(n * n)} for n in range(300)
]
KEYS = (
    "data.source=data.jsonl",
    "model.init_from=scratch",
    "tokenizer.name=char",
    "model.n_layer=2",
    "model.n_embd=36",
    "model.n_head=2",
    "train.block_size=64",
    "train.batch_size=8",
    "train.steps=8",
    "train.precision=fp32",
    "train.optimizer=adamw",
    "train.learning_rate=1e-3",
    "train.eval_every=4",
    "train.save_every=2",
    "train.eval_tokens=700",
    "train.micro_batch_size=2",
    "sample.max_new_tokens=3",
    'sample.prompts=["what is"]',
)


@pytest.fixture(scope="module")
def warm(request: pytest.FixtureRequest) -> Iterator[Warm]:
    """With fsdp, whose import takes 3 s, for the slow tests."""
    slow = any(item.get_closest_marker("slow") for item in request.session.items)
    with Warm(*(["torch.distributed.fsdp", "torch.distributed.tensor"] if slow else [])) as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all trainings of this module lie, so that the data are prepared once."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


class Trainings:
    """Starts trainings in one folder, each in processes that are gone within 60 s."""

    def __init__(self, warm: Warm, folder: Path) -> None:
        self.warm, self.folder = warm, folder

    def __call__(
        self, run: str, world: int, *keys: str, faults: dict[int, dict[str, Any]] | None = None
    ) -> tuple[list[int], list[str]]:
        """Exit codes and outputs by rank."""
        argv = ("train", "math", *KEYS, *keys, "--run", run)
        started = time.monotonic()
        children = self.warm.start_ranks(world, *argv, folder=self.folder, faults=faults)
        codes = [child.wait() for child in children]
        assert time.monotonic() - started < 60
        return codes, [child.output for child in children]

    def well(self, run: str, world: int, *keys: str) -> None:
        """A training that ends as it should, with nobody but the first speaking."""
        codes, outputs = self(run, world, *keys)
        assert codes == [0] * world, outputs
        assert outputs[1:] == [""] * (world - 1)

    def rows(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]

    def checkpoint(self, run: str, step: int, name: str = "weights") -> dict[str, Tensor]:
        return load_file(self.folder / run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def train(warm: Warm, folder: Path) -> Trainings:
    """With the run `one`: a process alone, eight steps."""
    trainings = Trainings(warm, folder)
    trainings.well("one", 1)
    return trainings


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for key in ("loss", "validation_loss", "grad_norm"):
            assert row.get(key, 0.0) == pytest.approx(other.get(key, 0.0), abs=1e-4)
        for key in ("tokens", "learned_tokens", "validation_tokens", "learning_rate"):
            assert row.get(key) == other.get(key)


def assert_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_two_processes_train_as_one_and_one_of_them_writes(train: Trainings) -> None:
    small = {rank: {"bucket_bytes": 3000} for rank in (0, 1)}  # Some tensors are larger, some go together.
    codes, outputs = train("two", 2, faults=small)
    assert (codes, outputs[1]) == ([0, 0], "")
    assert_same(train.rows("two"), train.rows("one"))
    environment = json.loads((train.folder / "two" / "environment.json").read_text())
    assert environment["starts"][0]["choices"]["processes"]["value"] == 2
    assert len((train.folder / "two" / "samples.jsonl").read_text().splitlines()) == 3


def test_what_cannot_be_shared_out_is_said(train: Trainings) -> None:
    codes, outputs = train("odd", 2, "train.batch_size=7")
    assert 2 in codes
    assert 0 not in codes
    assert "set train.batch_size=8" in "".join(outputs)
    codes, outputs = train("dry", 2, "--dry-run")
    assert (codes, outputs[1]) == ([0, 0], "")
    assert re.search(r"processes +2 +4 rows of a step for each", outputs[0])
    assert not (train.folder / "dry").exists()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_batch_is_evaluated_once(world: int) -> None:
    def batch(number: int) -> Batch:
        ids = torch.full((1, 4), number)
        return Batch(ids, ids, torch.ones(1, 4, dtype=torch.bool), ids, [[4]], 4.0, 4)

    shares = [list(share_of(map(batch, range(5)), rank=rank, world=world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    learned = [int(b.ids[0, 0]) for share in shares for b in share if b.learn.any()]
    assert sorted(learned) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rows", [3, 50, 1000, 100_000])
def test_a_batch_that_is_chosen_can_be_shared_out(rows: int) -> None:
    sizes = [choose_batch_size("auto", rows=rows, block_size=96, world=world).value for world in (1, 2, 3, 8)]
    assert [size % world for size, world in zip(sizes, (1, 2, 3, 8), strict=True)] == [0, 0, 0, 0]


def test_how_the_work_is_shared() -> None:
    def choice(free: int = 30_000, **train: Any) -> str:
        recipe = Recipe.model_validate({"train": train})
        return str(choose_parallel(recipe, parameters=1000, free=free).value)

    assert choice() == "ddp"
    assert choice(parallel="fsdp") == "fsdp"
    assert choice(free=15_000) == "fsdp"
    assert choice(free=15_000, optimizer="muon") == "ddp"
    with pytest.raises(UsageError, match=r"optimizer=muon needs it whole; set train\.parallel=ddp"):
        choice(parallel="fsdp", optimizer="muon")
    with pytest.raises(UsageError, match=r"train\.offload=on needs it whole"):
        choice(parallel="fsdp", offload="on")
    adapters = Recipe.model_validate({"train": {"parallel": "fsdp"}, "model": {"lora": {"rank": 2}}})
    with pytest.raises(UsageError, match=r"model\.lora\.rank=2 needs it whole"):
        choose_parallel(adapters, parameters=1000, free=30_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "more"),
    [
        (2, ["train.parallel=ddp"]),
        (4, ["train.parallel=ddp"]),
        (2, ["train.parallel=fsdp"]),
        (4, ["train.parallel=fsdp"]),
        (2, ["train.parallel=fsdp", "train.activation_checkpointing=on"]),
    ],
)
def test_gradients_of_a_step(train: Trainings, world: int, more: list[str]) -> None:
    """R8. After one step the first moment is a tenth of the gradient."""
    keys = ("train.steps=1", "train.grad_clip=0", "sample.max_new_tokens=0")
    if not (train.folder / "gradients").exists():
        train.well("gradients", 1, *keys)
    expected = train.checkpoint("gradients", 1, "optimizer")
    run = f"gradients-{world}-{len(more)}-{more[0]}"
    train.well(run, world, *keys, *more)
    found = train.checkpoint(run, 1, "optimizer")
    assert found.keys() == expected.keys()
    for name, moment in expected.items():
        if name.startswith("exp_avg."):
            torch.testing.assert_close(10 * found[name], 10 * moment, rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["float", "int8"])
def test_adapters_are_trained_together(train: Trainings, base: str) -> None:
    """R8 with LoRA, whose frozen weights have no gradients to add up."""
    if not (train.folder / "base").exists():
        (train.folder / "base").mkdir()
        save_model(train.folder / "base", tiny(n_positions=128), tokenizer=tokenizer())
    keys = ("model.init_from=base", "model.lora.rank=2", f"model.lora.base={base}", "tokenizer.name=auto")
    for world in (1, 2, 4):
        train.well(f"lora-{base}-{world}", world, *keys)
    for world in (2, 4):
        run = f"lora-{base}-{world}"
        assert_same(train.rows(run), train.rows(f"lora-{base}-1"))
        adapters = train.checkpoint(run, 8)
        assert {name.rpartition(".")[2] for name in adapters} == {"lora_A", "lora_B"}
        model = load_model(train.folder / run / "model")
        assert (model.h[0].mlp.c_fc.weight - load_model(train.folder / "base").h[0].mlp.c_fc.weight).any()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_going_on_with_another_number_of_processes(train: Trainings, parallel: str) -> None:
    """R8: 1 -> 2 -> 4 -> 2 -> 1, fifty steps; each start is stopped ten steps later, by a signal to one rank."""
    fifty = ("train.steps=50", "train.eval_every=25", "train.save_every=25")
    if not (train.folder / "fifty").exists():
        train.well("fifty", 1, *fifty)
    keys = (*fifty, f"train.parallel={parallel}")
    for world in (1, 2, 4, 2):
        forwards = 10 * 8 // (2 * world)  # Eight rows a step, two at a time.
        last = {world - 1: {"point": "forward", "count": forwards, "signals": [signal.SIGTERM]}}
        codes, outputs = train(parallel, world, *keys, faults=last)
        assert codes == [143] * world, outputs
        assert "".join(outputs).count("linnet: stopped by SIGTERM") == 1
    train.well(parallel, 1, *keys)
    assert_same(train.rows(parallel), train.rows("fifty"))
    starts = json.loads((train.folder / parallel / "environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 10, 20, 30, 40]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "rank", "fault"),
    [
        ("ddp", 0, {"point": "step", "count": 5}),
        ("ddp", 1, {"point": "step", "count": 5}),
        ("ddp", 0, {"point": "sum", "count": 30}),
        ("ddp", 1, {"point": "sum", "count": 31}),
        ("ddp", 0, {"point": "operation", "save": 2, "count": 9}),
        ("ddp", 0, {"point": "model", "count": 2}),
        ("fsdp", 0, {"point": "operation", "save": 2, "count": 9}),
        ("fsdp", 1, {"point": "forward", "count": 9}),
        ("fsdp", 1, {"point": "shares", "count": 4}),
    ],
)
def test_a_process_is_killed(train: Trainings, parallel: str, rank: int, fault: dict[str, Any]) -> None:
    """R9: the other ends, too, and the run goes on to the same bits."""
    keys = (f"train.parallel={parallel}", "sample.max_new_tokens=0")
    whole = f"whole-{parallel}"
    if not (train.folder / whole).exists():
        train.well(whole, 2, *keys)
    run = f"killed-{parallel}-{rank}-{fault['point']}"
    codes, outputs = train(run, 2, *keys, faults={rank: fault})
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    assert "Another process of this training has ended" in outputs[1 - rank]
    train.well(run, 2, *keys)
    for name in ("weights", "optimizer"):
        assert_bits(train.checkpoint(run, 8, name), train.checkpoint(whole, 8, name))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_in_an_evaluation_too(train: Trainings) -> None:
    keys = ("sample.max_new_tokens=0",)
    fault = {1: {"point": "evaluate", "count": 2, "signals": [signal.SIGINT]}}
    codes, outputs = train("evaluation", 2, *keys, faults=fault)
    assert codes == [130, 130], outputs
    assert "".join(outputs).count("linnet: stopped by Ctrl-C") == 1
    train.well("evaluation", 2, *keys)
    assert_same(train.rows("evaluation"), train.rows("one"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_process(train: Trainings, parallel: str) -> None:
    """R10: no rank takes the step, and the rows that are named are those of the rank."""
    keys = (f"train.parallel={parallel}", "sample.max_new_tokens=0", "train.eval_every=8")
    fault = {1: {"point": "forward", "count": 3, "does": "nan"}}  # Two micro-batches a step.
    codes, outputs = train(f"nan-{parallel}", 2, *keys, faults=fault)
    assert codes == [0, 0], outputs
    assert outputs[0].count("step 2 is skipped: the loss is not finite for rows with the ids") == 1
    before, after = (train.checkpoint(f"nan-{parallel}", step, "optimizer") for step in (6, 8))
    assert {float(tensor) for name, tensor in before.items() if name.startswith("step.")} == {5.0}
    assert {float(tensor) for name, tensor in after.items() if name.startswith("step.")} == {7.0}
    five = {1: {"point": "forward", "count": [1, 3, 5, 7, 9], "does": "nan"}}
    codes, outputs = train(f"diverged-{parallel}", 2, *keys, faults=five)
    assert codes == [3, 3], outputs
    assert "".join(outputs).count("not finite in 5 steps in a row") == 1


@pytest.mark.slow
def test_one_process_runs_out_of_memory(train: Trainings) -> None:
    """R11: it does its rows again in smaller parts, the other waits, and both remember."""
    fault = {1: {"point": "forward", "count": 5, "does": "memory"}}
    codes, outputs = train("memory", 2, faults=fault)
    assert codes == [0, 0], outputs
    assert "step 3: 2 rows at once did not fit into memory" in outputs[0]
    assert_same(train.rows("memory"), train.rows("one"))
    state = json.loads((train.folder / "memory/checkpoints/step-00000008/state.json").read_text())
    assert state["loop"]["most_rows"] == 1


@pytest.mark.slow
def test_with_shares_running_out_of_memory_ends_all(train: Trainings) -> None:
    """The other is amid a forward pass that needs both."""
    fault = {1: {"point": "forward", "count": 5, "does": "memory"}}
    codes, outputs = train("memory-fsdp", 2, "train.parallel=fsdp", faults=fault)
    assert codes == [1, 5], outputs
    assert "".join(outputs).count("linnet:") == 1
    assert "train.micro_batch_size" in outputs[1]


@pytest.mark.slow
def test_torchrun_as_one_types_it(train: Trainings) -> None:
    """R9 and signals: torchrun hands them on; a process that is killed takes the others along."""
    torchrun = Path(sys.executable).parent / "torchrun"
    words = [str(torchrun), "--nproc-per-node", "2", "-m", "--", "linnet", "train", "math", *KEYS]
    words += ["--run", "torchrun", "train.steps=100000", "train.save_every=10", "train.eval_every=100000"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    checkpoints = train.folder / "torchrun" / "checkpoints"

    def saved() -> list[Path]:
        return sorted(checkpoints.glob("step-*"))

    for number in (signal.SIGKILL, signal.SIGTERM):
        before = saved()[-1:]
        with subprocess.Popen(
            words, cwd=train.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            while saved()[-1:] == before:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.1)
            workers = psutil.Process(process.pid).children()
            assert len(workers) == 2
            struck = workers[1].pid if number == signal.SIGKILL else process.pid
            os.kill(struck, number)
            started = time.monotonic()
            out = process.communicate(timeout=60)[0]
            assert time.monotonic() - started < 60
        said = "Another process of this training" if number == signal.SIGKILL else "stopped by SIGTERM"
        assert out.count(f"linnet: {said}") == 1
        assert not any(worker.is_running() for worker in workers)
    step = int(saved()[-1].name.removeprefix("step-"))
    keys = ("train.save_every=10", "train.eval_every=100000", f"train.steps={step + 2}", "--accept-changes")
    train.well("torchrun", 1, *keys)
