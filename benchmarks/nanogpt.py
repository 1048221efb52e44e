"""nanoGPT's training as a process with a clock, and what is measured of any: for loss_vs_time.py and time_to_loss.py.

What   `train_nanogpt(job, ...)` runs its train.py and gives an `Outcome`; `run` and `mean_loss` are for ours, too.
Why    nanoGPT's own clock counts evaluations, checkpoints and compiling, and it has no option for its seed.
How    Each line of its output is kept with the second at which it came; `read_nanogpt` makes the clock of them.
"""

import contextlib
import importlib.util
import os
import pickle
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

Curve = list[tuple[float, float]]  # (seconds of training, held-out loss)
EVALUATIONS = 15  # of a run, about
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Job:
    """What both train. `window` tokens a row, `rows` a step for nanoGPT."""

    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    window: int = 256
    rows: int = 64
    steps: int = 1500


NANOGPT_ON_CPU = Job(n_layer=4, n_head=4, n_embd=128, window=64, rows=12, steps=2000)


@dataclass(frozen=True)
class Outcome:
    """One training: its curve, the loss of what it saved, and seconds of training up to that and to its end."""

    curve: Curve
    loss: float
    best_s: float
    training_s: float
    wall_s: float
    parameters: int
    steps: int
    start_s: float
    """What the first step took beyond a usual one: compiling, loading kernels. Not in the other times."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: Sequence[str], *, cwd: Path, log: Path, paths: Sequence[Path] = ()) -> float:
    """Run a command to its end; its seconds. Each line goes into `log` behind the second at which it came."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    with (
        log.open("w", encoding="utf-8") as out,
        subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            out.write(f"{time.perf_counter() - started:.4f} {line}")
            if line.startswith("step ") and "val loss" in line:
                say(f"    {line.rstrip()}")
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - started


def mean_loss(logits: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, *, window: int) -> float:
    """Mean cross entropy of ids [N] after the first, in windows of `window` inputs (the last is shorter).

    logits: [B, T] int64 -> [B, T, V].
    """
    body = (len(ids) - 1) // window * window
    inputs = [*ids[:body].view(-1, window).split(ROWS_AT_ONCE), ids[None, body:-1]]
    targets = [*ids[1 : body + 1].view(-1, window).split(ROWS_AT_ONCE), ids[None, body + 1 :]]
    total = 0.0
    with torch.no_grad():
        for x, y in zip(inputs, targets, strict=True):
            if y.numel():
                scores = logits(x).float().flatten(0, 1)
                total += float(torch.nn.functional.cross_entropy(scores, y.flatten(), reduction="sum"))
    return total / (len(ids) - 1)


def write_ids(folder: Path, *, train: Any, held_out: Any, vocab_size: int) -> None:
    """Ids as nanoGPT's preparation leaves them."""
    folder.mkdir(exist_ok=True)
    for name, ids in (("train", train), ("val", held_out)):
        np.asarray(ids).astype(np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))


def train_nanogpt(
    job: Job, *, checkout: Path, python: str, seed: int, folder: Path, held_out: torch.Tensor
) -> Outcome:
    """nanoGPT's train.py with another seed, and the loss of the checkpoint that it keeps (its best)."""
    script, count = re.subn(
        r"torch\.manual_seed\(1337", f"torch.manual_seed({seed}", (checkout / "train.py").read_text()
    )
    if count != 1:
        sys.exit(f"{checkout}/train.py sets no seed of 1337: another version of nanoGPT?")
    (folder / "train.py").write_text(script)
    lines_every = 10 if job.steps >= 300 else 1
    every = max(2 * lines_every, job.steps // EVALUATIONS // lines_every * lines_every)
    steps = max(1, job.steps // every) * every
    settings: dict[str, Any] = {
        "dataset": folder.parent / "ids",
        "out_dir": folder,
        "device": held_out.device.type,
        "compile": held_out.device.type == "cuda",
        "n_layer": job.n_layer,
        "n_head": job.n_head,
        "n_embd": job.n_embd,
        "block_size": job.window,
        "batch_size": job.rows,
        "dropout": 0.0,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "warmup_iters": min(100, steps // 10),
        "eval_interval": every,
        "eval_iters": 20,
        "log_interval": lines_every,
    }
    command = [python, str(folder / "train.py"), "config/train_shakespeare_char.py"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    wall = run(command, cwd=checkout, log=folder / "log.txt", paths=[checkout])
    evaluations, clock, compiling = read_nanogpt((folder / "log.txt").read_text(encoding="utf-8"))
    checkpoint = torch.load(folder / "ckpt.pt", map_location=held_out.device, weights_only=True)
    model = load_nanogpt(checkout, checkpoint).to(held_out.device)
    # Without targets its forward gives the scores of the last position only.
    loss = mean_loss(lambda x: model(x, x)[0], held_out, window=job.window)
    best = checkpoint["iter_num"]
    shift = loss - dict(evaluations)[best]
    return Outcome(
        curve=[(clock[step], value + shift) for step, value in evaluations],
        loss=loss,
        best_s=clock[best],
        training_s=clock[steps],
        wall_s=wall,
        parameters=count_parameters(model),
        steps=steps,
        start_s=compiling,
    )


def read_nanogpt(log: str) -> tuple[list[tuple[int, float]], dict[int, float], float]:
    """Of nanoGPT's lines, each behind its second: evaluations (step, loss), the clock, and what compiling took.

    The clock has the seconds of training after so many steps, for each evaluation's number of steps.
    """
    lines = [(float(at), int(step)) for at, step in re.findall(r"^([\d.]+) iter (\d+):", log, re.MULTILINE)]
    found = re.findall(r"^([\d.]+) step (\d+): .*val loss ([\d.]+)", log, re.MULTILINE)
    evaluations = [(int(step), float(loss)) for _, step, loss in found]
    evaluated = {step for step, _ in evaluations}
    gaps = [(a, b, (t_b - t_a) / (b - a)) for (t_a, a), (t_b, b) in pairwise(lines)]
    clean = [each for a, b, each in gaps if not evaluated.intersection(range(a + 1, b + 1))]
    if not clean:
        sys.exit("nanoGPT's log has no two lines without an evaluation between them: take more --steps.")
    usual = statistics.median(clean)
    # A gap (a, b] is the time of steps a + 1 to b; before the first line lie start and compiling.
    cost = np.full(max(b for _, b, _ in gaps) + 1, usual)
    for a, b, each in gaps:
        if not evaluated.intersection(range(a + 1, b + 1)):
            cost[a + 1 : b + 1] = each
    clock = np.concatenate([[0.0], np.cumsum(cost)])
    first_step = lines[0][0] - float(found[0][0]) if found else 0.0
    return evaluations, {step: float(clock[step]) for step in evaluated}, max(0.0, first_step - usual)


def load_nanogpt(checkout: Path, checkpoint: dict[str, Any]) -> torch.nn.Module:
    """nanoGPT's checkpoint in its own model; a compiled one has a prefix before each name."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(sys.stderr):  # it prints its number of parameters
        model: torch.nn.Module = module.GPT(module.GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(
        {key.removeprefix("_orig_mod."): value for key, value in checkpoint["model"].items()}
    )
    return model.eval()


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
