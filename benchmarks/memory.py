"""What a training takes in memory, beside what the plan says it will.

What  For each configuration: bytes predicted by `linnet.training.memory`, bytes measured, their ratio. On a card also
      the goals under 4 GB, with the settings that the plan chooses for so much.
Why   "auto" and `linnet plan` decide by this arithmetic; it must be right within 10 %.
How   python benchmarks/memory.py [--short] [--only NAME ...] [--json]

      Each configuration is built, makes three steps of the real loop and is saved, in a process of its own, with
      random weights and tokens. On a CPU the peak of its own memory is counted over what the process held before its
      model; on a card the allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from jobs import ASCII, SHAPES, character_tokenizer, write_weights

from linnet.config import LoraConfig, ModelConfig, Recipe, TrainConfig
from linnet.device import Choice, keep_freed_memory, this_machine
from linnet.model.gpt2 import GPT2Config

if TYPE_CHECKING:
    from linnet.data.batches import Batch
    from linnet.training.loop import TrainState
    from linnet.training.plan import Plan

STEPS = 3
CARD = 4_000_000_000  # Bytes of the small card of the goals, CUDA's context among them.


@dataclass(frozen=True)
class Case:
    """A training to be measured."""

    name: str
    shape: str
    batch_size: int
    block_size: int
    train: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe's train part."""
    lora: dict[str, Any] = field(default_factory=dict)
    is_goal: bool = False
    """To fit a card of CARD bytes."""


PLAIN: dict[str, Any] = {"activation_checkpointing": "off", "offload": "off"}
THRIFTY: dict[str, Any] = {"activation_checkpointing": "on", "offload": "off"}
RANK8: dict[str, Any] = {"rank": 8}
INT8: dict[str, Any] = {"rank": 8, "base": "int8"}

ON_CPU = [
    Case("small", "small", 8, 512, PLAIN),
    Case("small-checkpointing", "small", 8, 512, THRIFTY),
    Case("small-fp32", "small", 8, 512, PLAIN | {"precision": "fp32"}),
    Case("small-muon", "small", 16, 256, PLAIN | {"optimizer": "muon"}),
    Case("gpt2", "gpt2", 4, 512, PLAIN),
    Case("gpt2-checkpointing", "gpt2", 4, 512, THRIFTY),
    Case("gpt2-1-of-4", "gpt2", 4, 512, PLAIN | {"micro_batch_size": 1}),
    Case("gpt2-fp32", "gpt2", 2, 512, PLAIN | {"precision": "fp32"}),
    Case("gpt2-lora", "gpt2", 4, 512, PLAIN, RANK8),
    Case("gpt2-lora-int8", "gpt2", 4, 512, PLAIN, INT8),
]
# Only where it is asked for by name: it writes 6 GB and takes minutes.
LARGE = [Case("gpt2-xl-lora-int8", "gpt2-xl", 1, 512, THRIFTY, INT8)]
SHORT = [case for case in ON_CPU if case.shape == "small"][:2]
ON_CUDA = [
    Case("gpt2", "gpt2", 8, 1024, PLAIN),
    Case("gpt2-checkpointing", "gpt2", 8, 1024, THRIFTY),
    Case("gpt2-2-of-8", "gpt2", 8, 1024, PLAIN | {"micro_batch_size": 2}),
    Case("gpt2-fp32", "gpt2", 4, 1024, PLAIN | {"precision": "fp32"}),
    Case("gpt2-fp16", "gpt2", 8, 1024, PLAIN | {"precision": "fp16"}),
    Case("gpt2-offload", "gpt2", 8, 1024, PLAIN | {"offload": "on"}),
    Case("gpt2-lora", "gpt2", 8, 1024, PLAIN, RANK8),
    Case("gpt2-medium", "gpt2-medium", 8, 1024, PLAIN),
]
GOALS = [
    Case("4GB-gpt2", "gpt2", 4, 1024, {"micro_batch_size": 4}, is_goal=True),
    Case("4GB-gpt2-medium", "gpt2-medium", 1, 1024, is_goal=True),
    Case("4GB-gpt2-large-lora", "gpt2-large", 1, 1024, lora=RANK8, is_goal=True),
    Case("4GB-gpt2-xl-lora-int8", "gpt2-xl", 1, 512, lora=INT8, is_goal=True),
]


def measure(case: Case) -> dict[str, Any]:
    """In a process of its own: plan, build, three steps, save."""
    import torch

    from linnet.model.loss import next_token_loss
    from linnet.setup import build_model, build_state
    from linnet.training import memory
    from linnet.training.loop import Looks, train
    from linnet.training.plan import training_of

    keep_freed_memory()
    recipe, shape = recipe_of(case)
    plan = plan_of(case, recipe=recipe, shape=shape)
    on_card = plan.device == "cuda"
    logged: list[dict[str, Any]] = []
    said: list[str] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        base = random_base(Path(folder) / "base", case.shape) if case.lora else None
        with Resident() as resident:
            model = build_model(shape, recipe=recipe, initial=base, precision=plan.precision)
            state = build_state(model, recipe=recipe, plan=plan)
            if on_card:
                torch.cuda.reset_peak_memory_stats()
            train(
                state,
                config=recipe.train,
                plan=plan,
                batch=lambda step: random_batch(case, shape=shape, step=step),
                loss=next_token_loss,
                looks=Looks(log=logged.append, say=said.append),
            )
            save(state, Path(folder) / "model", recipe=recipe, base=base)
    training = training_of(plan, model=shape, optimizer=recipe.train.optimizer, lora=recipe.model.lora)
    return {
        "predicted": memory.needed(training),
        "measured": torch.cuda.max_memory_allocated() if on_card else resident.peak,
        "items": memory.peak(training),
        "reserved": torch.cuda.max_memory_reserved() if on_card else 0,
        "rows": plan.micro_batch_size,
        "checkpointing": plan.activation_checkpointing,
        "offload": plan.offload,
        "precision": plan.precision,
        "step_s": (logged[-1]["time_s"] - logged[0]["time_s"]) / (len(logged) - 1),
        "said": said,
    }


def recipe_of(case: Case) -> tuple[Recipe, GPT2Config]:
    train = TrainConfig(steps=STEPS, batch_size=case.batch_size, block_size=case.block_size, **case.train)
    recipe = Recipe(train=train, model=ModelConfig(lora=LoraConfig(**case.lora)))
    return recipe, GPT2Config(**SHAPES[case.shape])


def plan_of(case: Case, *, recipe: Recipe, shape: GPT2Config) -> Plan:
    """As `linnet train` plans; a goal is given a card of CARD bytes, which the allocator then keeps to."""
    import torch

    from linnet.training.memory import PROCESS
    from linnet.training.plan import make_plan

    machine = this_machine(recipe.train.precision)
    if case.is_goal:
        allowed = CARD - PROCESS["cuda"]
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(allowed / total)
        machine = replace(machine, free=allowed)
    return make_plan(
        recipe.train,
        block_size=Choice(case.block_size, ""),
        count_rows=lambda size: 1000,
        model=shape,
        lora=recipe.model.lora,
        machine=machine,
        kept={},
    )


def random_base(folder: Path, shape: str) -> Path:
    """A model for adapters, written by a process of its own: what that leaves in the heap is not counted."""
    subprocess.run([sys.executable, __file__, "--write-base", str(folder), shape], check=True)
    return folder


def random_batch(case: Case, *, shape: GPT2Config, step: int) -> Batch:
    """Full rows, all of them learned."""
    import torch

    from linnet.data.batches import Batch

    generator, size = torch.Generator().manual_seed(step), (case.batch_size, case.block_size)
    ids = torch.randint(0, shape.vocab_size, (size[0], size[1] + 1), generator=generator)
    return Batch(
        ids=ids[:, :-1],
        targets=ids[:, 1:],
        learn=torch.ones(size, dtype=torch.bool),
        positions=torch.arange(size[1]).expand(size),
        lengths=[[size[1]]] * size[0],
        weight=float(ids[:, 1:].numel()),
        tokens=ids[:, 1:].numel(),
    )


def save(state: TrainState, folder: Path, *, recipe: Recipe, base: Path | None) -> None:
    """model/, as `linnet train` writes it."""
    from linnet.model.gpt2 import GPT2
    from linnet.model.lora import merged
    from linnet.model.pretrained import load_model, save_model

    weights, lora = state.weights(), recipe.model.lora
    weight = weights.__getitem__
    if base is not None:
        weight = merged(load_model(base, mapped=True), weights, factor=lora.alpha / lora.rank)
    folder.mkdir()
    network = GPT2.without_weights(cast("GPT2", state.model).config)
    save_model(folder, network, tokenizer=character_tokenizer(len(ASCII) + 1), weight=weight)


class Resident:
    """The peak of this process' own memory over what it held at the start, in bytes.

    Looked at every 5 ms. Pages of mapped files do not count: the system takes them back when it needs room.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._start = self._now()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._now() - self._start)

    def _now(self) -> int:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("this benchmark reads /proc, which only Linux has")


def run(case: Case) -> dict[str, Any]:
    """`measure` in a child; what it died of is an error of this case alone."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(asdict(case))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def show(case: Case, found: dict[str, Any]) -> None:
    if "error" in found:
        line = f"{case.name:24} failed: {found['error']}"
    else:
        predicted, measured = found["predicted"], found["measured"]
        settings = f"{found['rows']} x {case.block_size} at once, {found['precision']}"
        settings += ", checkpointing" if found["checkpointing"] == "on" else ""
        settings += ", offload" if found["offload"] == "on" else ""
        goal = f"; fits 4 GB with {CARD / 1e9 - measured / 1e9:.2f} GB left for CUDA" if case.is_goal else ""
        line = f"{case.name:24} {predicted / 1e6:9,.0f} {measured / 1e6:9,.0f} {predicted / measured:6.3f}"
        line += f"  {settings}{goal}"
        line += "".join(f"\n{'':25}{said}" for said in found["said"])
    print(line, file=sys.stderr, flush=True)


def rows_of(case: Case, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The house's form; each case is run once: the same shapes take the same memory."""
    values = {
        "predicted": ("MB", found["predicted"] / 1e6),
        "measured": ("MB", found["measured"] / 1e6),
        "ratio": ("predicted / measured", found["predicted"] / found["measured"]),
    }
    return [
        {"name": f"linnet-{case.name}-{what}", "unit": unit, "min": value, "median": value, "max": value}
        for what, (unit, value) in values.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="two small configurations")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these configurations")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--write-base", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_base:
        base, shape = arguments.write_base
        write_weights(Path(base), SHAPES[shape], tokenizer=character_tokenizer(len(ASCII) + 1))
        return 0
    if arguments.measure:
        print(json.dumps(measure(Case(**json.loads(arguments.measure)))))
        return 0
    import torch

    cases = ON_CUDA + GOALS if torch.cuda.is_available() else SHORT if arguments.short else ON_CPU
    if arguments.only and not torch.cuda.is_available():
        cases = ON_CPU + LARGE
    unknown = set(arguments.only) - {case.name for case in cases}
    if unknown:
        parser.error(
            f"no configuration {', '.join(sorted(unknown))}; there is: {', '.join(c.name for c in cases)}"
        )
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads", file=sys.stderr)
    print(f"{'':24} {'predicted':>9} {'measured':>9} {'ratio':>6}  MB", file=sys.stderr)
    rows, failed = [], 0
    for case in cases:
        if arguments.only and case.name not in arguments.only:
            continue
        found = run(case)
        show(case, found)
        failed += "error" in found
        rows += [] if "error" in found else rows_of(case, found)
    if arguments.json:
        print(json.dumps(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
