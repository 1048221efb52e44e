"""Checkpoints: old or new after every crash and every failing write, damage refused by name (R2, R3, R5)."""

import errno
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linnet import files
from linnet.errors import DiskError, FormatVersionError, LinnetError
from linnet.training.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    load_checkpoint,
    load_newest,
    prune,
    save_checkpoint,
    saved_steps,
)
from tests import faults

State = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]


def state_of(step: int, *, size: int = 6) -> State:
    """A training state as it could be at a step: each step's tensors differ everywhere."""
    generator = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(size, 5, generator=generator) for name in ("wte.weight", "h.0.ln_1.weight")}
    moments = {f"exp_avg.{name}": torch.randn(size, 5, generator=generator) for name in weights}
    return weights, moments, {"tokens": step * 1000, "best_step": 1, "loss": 1 / (step + 1)}


def save(folder: Path, step: int) -> Path:
    weights, optimizer, state = state_of(step)
    return save_checkpoint(folder, step=step, weights=weights, optimizer=optimizer, state=state)


def save_and_prune(folder: Path, step: int, *, keep: int = 2, best_step: int | None = None) -> None:
    save(folder, step)
    prune(folder, newest=step, keep=keep, best_step=best_step)


def check_whole(checkpoint: Checkpoint | None) -> int:
    """The step of a checkpoint whose every bit is what `state_of` gives for it."""
    assert checkpoint is not None
    weights, optimizer, state = state_of(checkpoint.step)
    assert checkpoint.state == state
    for loaded, expected in ((checkpoint.weights, weights), (checkpoint.optimizer, optimizer)):
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    return checkpoint.step


def error_of(work: Callable[[], Any]) -> str | None:
    """The message of the DiskError that `work` raises, None if it succeeds."""
    try:
        work()
    except DiskError as error:
        return str(error)
    return None


def quiet(sentence: str) -> None:
    pytest.fail(f"nothing is damaged here, yet it said: {sentence}")


def load(folder: Path) -> int:
    return check_whole(load_newest(folder, say=quiet))


@pytest.fixture
def old() -> Iterator[Path]:
    """A folder with the checkpoints of the steps 1 (the best), 2 and 3; in memory where that can be.

    These tests sync some 10,000 times, which takes 40 s on a busy disk and nothing in memory.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as parent:
        folder = Path(parent) / "old"
        for step in (1, 2, 3):
            save(folder, step)
        yield folder


def fresh(old: Path) -> Path:
    """A copy of `old`, in the place of the last copy."""
    folder = old.parent / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(old, folder)
    return folder


# --- the form on disk ---


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints", say=quiet) is None
    path = save(tmp_path / "checkpoints", 500)
    assert path == tmp_path / "checkpoints" / "step-00000500"
    assert {entry.name for entry in path.iterdir()} == {
        "weights.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    assert load(tmp_path / "checkpoints") == 500
    weights, optimizer, state = state_of(500)
    used = sum(entry.stat().st_size for entry in path.iterdir())
    assert used <= checkpoint_bytes(weights, optimizer, state) < used + 4096


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", 7), save(tmp_path / "b", 7)
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes()


def test_an_empty_optimizer_state_is_fine(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, step=0, weights={"w": torch.ones(2)}, optimizer={}, state={})
    assert load_checkpoint(path).optimizer == {}


def test_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        save(tmp_path, step)
    (tmp_path / "step-notes").mkdir()
    assert saved_steps(tmp_path) == [5, 99_999_999, 100_000_000]
    assert load(tmp_path) == 100_000_000


# --- pruning ---


@pytest.mark.parametrize(
    ("newest", "keep", "best_step", "left"),
    [
        (3, 2, None, [2, 3]),
        (3, 2, 1, [1, 2, 3]),
        (3, 1, 1, [1, 3]),
        (3, 1, 3, [3]),
        (3, 9, None, [1, 2, 3]),
        (3, 1, 77, [3]),
        (2, 1, None, [2]),  # 3 belongs to a past that was given up.
        (2, 2, 1, [1, 2]),
    ],
)
def test_prune_keeps_the_newest_and_the_best(
    old: Path, newest: int, keep: int, best_step: int | None, left: list[int]
) -> None:
    prune(old, newest=newest, keep=keep, best_step=best_step)
    assert saved_steps(old) == left


def test_prune_needs_a_saved_newest_step(old: Path) -> None:
    with pytest.raises(ValueError, match="step 4 is not saved"):
        prune(old, newest=4, keep=1, best_step=None)
    with pytest.raises(ValueError, match="keep is 0"):
        prune(old, newest=3, keep=0, best_step=None)
    assert saved_steps(old) == [1, 2, 3]


def test_a_damaged_newer_checkpoint_does_not_push_out_a_good_one(old: Path) -> None:
    (old / "step-00000003" / "state.json").write_bytes(b"")
    said: list[str] = []
    assert check_whole(load_newest(old, say=said.append)) == 2
    prune(old, newest=2, keep=1, best_step=None)  # As after a save at step 2.
    assert saved_steps(old) == [2]
    assert load(old) == 2


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(old: Path) -> None:
    (old / "step-00000003" / "state.json").write_bytes(b"")
    save_and_prune(old, 3, keep=1)
    assert saved_steps(old) == [3]
    assert load(old) == 3


# --- R2: a crash before and after every operation ---


@pytest.mark.parametrize("really", [False, True], ids=["raised", "exit"])
@pytest.mark.parametrize(("step", "best_step"), [(4, 1), (4, None), (3, 1)])
def test_a_crash_anywhere_leaves_the_old_state_or_the_new(
    old: Path, step: int, best_step: int | None, really: bool
) -> None:
    """Step 3 is one that stands there already: saved again after a resume, in the place of the first."""

    def work() -> None:
        save_and_prune(folder, step, best_step=best_step)

    folder = fresh(old)
    operations = faults.count(work)
    kept = saved_steps(folder)
    loaded = []
    for k in range(1, operations + 2):
        folder = fresh(old)
        if really:
            assert faults.exit_at(k, work) == (faults.KILLED if k <= operations else 0)
        else:
            with faults.crash_at(k):
                work()
        loaded.append(load(folder))
        assert not list(folder.glob(".*")), "loading clears what the crash left"
        steps = saved_steps(folder)
        assert set(kept) - {step} <= set(steps), "nothing is removed that should stay"
        for other in steps:
            check_whole(load_checkpoint(folder / f"step-{other:08d}"))
        work()
        assert saved_steps(folder) == kept
    assert operations > 25
    assert loaded == sorted(loaded)
    assert (loaded[0], loaded[-1]) == (3, step)


def test_a_crash_of_the_first_save_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    operations = faults.count(lambda: save(folder, 1))
    for k in range(1, operations + 1):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        with faults.crash_at(k):
            save(folder, 1)
        checkpoint = load_newest(folder, say=quiet)
        assert checkpoint is None or check_whole(checkpoint) == 1
        assert saved_steps(folder) == ([] if checkpoint is None else [1])


def test_nothing_is_removed_before_the_new_one_is_verified(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes the bytes and gives others back."""
    sync = files.operations.sync

    def lying(path: Path) -> None:
        sync(path)
        if path.name == "step-00000004":
            pytest.fail("the folder is synced under its hidden name")
        if path == old and (old / "step-00000004").exists():
            flip(old / "step-00000004" / "weights.safetensors", 4000)

    monkeypatch.setattr(files.operations, "sync", lying)
    with pytest.raises(DiskError, match=r"does not read back: .*weights\.safetensors is damaged"):
        save_and_prune(old, 4, keep=1)
    assert saved_steps(old) == [1, 2, 3, 4]
    said: list[str] = []
    assert check_whole(load_newest(old, say=said.append)) == 3
    assert len(said) == 1


# --- R3: failing writes ---


@pytest.mark.parametrize("on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT])
def test_a_failing_write_keeps_the_old_checkpoint(old: Path, number: int, on: bool) -> None:
    """Every operation that can run out of space fails once, or from then on (removing still works)."""
    growing = ("create", "write", "fsync", "mkdir", "rename")
    needed = checkpoint_bytes(*state_of(4))
    messages: list[str] = []
    for k in itertools.count(1):
        folder = fresh(old)
        with faults.error_at(k, number, only=growing, on=on):
            message = error_of(lambda: save(folder, 4))  # noqa: B023  (called at once)
        if message is None:
            break
        messages.append(message)
        assert str(folder) in message
        assert f"{needed:,} bytes" in message
        if not on:
            assert not list(folder.glob(".*")), "the half written folder is removed"
        assert load(folder) in (3, 4)
        assert saved_steps(folder)[:3] == [1, 2, 3]
    assert len(messages) > 20


@pytest.mark.parametrize("size", [lambda _: 1, lambda length: length // 2, lambda length: length - 1])
def test_short_writes_are_continued(tmp_path: Path, size: Callable[[int], int]) -> None:
    with faults.short_writes(size):
        path = save(tmp_path / "short", 4)
    for entry in save(tmp_path / "plain", 4).iterdir():
        assert entry.read_bytes() == (path / entry.name).read_bytes()
    assert load(tmp_path / "short") == 4


def test_a_write_that_takes_nothing_is_an_error(old: Path) -> None:
    def around(_k: int, name: str, operation: faults.Operation, arguments: tuple[Any, ...]) -> Any:
        return 0 if name == "write" else operation(*arguments)

    with faults.wrapped(around), pytest.raises(DiskError, match="input/output error"):
        save(old, 4)
    assert load(old) == 3


@pytest.mark.parametrize("limit", [0, 1, 200, 500])
def test_a_file_size_limit_of_the_system(old: Path, limit: int) -> None:
    message = old.parent / "message"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(old, 4)
        except DiskError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            message.write_text(str(error))
            raise SystemExit(error.exit_code) from error

    assert faults.in_child(work) == 4
    assert "larger than the system allows" in message.read_text()
    assert f"{checkpoint_bytes(*state_of(4)):,} bytes" in message.read_text()
    assert load(old) == 3
    assert not list(old.glob(".*"))


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
import torch
from linnet.errors import LinnetError
from linnet.training.checkpoint import load_newest, prune, save_checkpoint

torch.set_num_threads(1)
folder = Path(sys.argv[1]) / "checkpoints"
for step in range(1, 9):  # 0.7 MB each: two fit into 2 MB, a third does not.
    weights = {"w": torch.full((90_000,), float(step))}
    try:
        path = save_checkpoint(folder, step=step, weights=weights, optimizer={"m": weights["w"] / 2}, state={})
    except LinnetError as error:
        print(error)
        newest = load_newest(folder, say=sys.exit)
        assert newest.step == step - 1 == 2 and bool((newest.weights["w"] == 2).all())
        assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000001", "step-00000002"]
        prune(folder, newest=2, keep=1, best_step=None)  # There is room again, so it goes on.
        save_checkpoint(folder, step=step, weights=weights, optimizer={}, state={})
        sys.exit(error.exit_code)
"""


def test_a_real_disk_of_2_mb(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this system does not let us mount a small disk (unshare -Urm)")
    mount = f'mount -t tmpfs -o size=2m tmpfs "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount, sys.executable, ON_A_SMALL_DISK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr == ""
    assert "The disk is full" in done.stdout
    assert "step-00000003.tmp/optimizer.safetensors needs 360," in done.stdout
    assert "The whole checkpoint of step 3 needs 724," in done.stdout


# --- R5: damage ---


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def damage(newest: Path, older: Path, rng: random.Random) -> str:
    """Damage one file of `newest` in a random way; returns its name. `older` is only read."""
    path = rng.choice(sorted(newest.iterdir()))
    before = path.read_bytes()
    size = len(before)
    other = rng.choice([entry for entry in sorted(newest.iterdir()) if entry != path])
    way = rng.choice(["flip", "zeros", "cut", "longer", "gone", "swapped inside", "from an older one"])
    if way == "flip":
        flip(path, rng.randrange(8 * size))
    elif way == "zeros":
        length = rng.randint(1, size)
        path.write_bytes(before[: size - length] + bytes(length))
    elif way == "cut":
        path.write_bytes(before[: rng.randrange(size)])
    elif way == "longer":
        path.write_bytes(before + rng.randbytes(rng.randint(1, 100)))
    elif way == "gone":
        path.unlink()
    elif way == "swapped inside":
        path.write_bytes(other.read_bytes())
        other.write_bytes(before)
        return "|".join(sorted((path.name, other.name)))
    else:
        path.write_bytes((older / path.name).read_bytes())
        if path.name == files.MANIFEST:
            return "step-00000003"  # A good manifest, of other files: it is those that do not agree with it.
    assert way in ("gone",) or path.read_bytes() != before
    return path.name


@pytest.mark.parametrize("amount", [100, pytest.param(1000, marks=pytest.mark.torture)])
def test_damage_is_refused_by_name_and_the_newest_good_one_taken(old: Path, amount: int) -> None:
    for seed in range(amount):
        folder = fresh(old)
        newest = folder / "step-00000003"
        names = damage(newest, folder / "step-00000002", random.Random(seed))
        said: list[str] = []
        assert check_whole(load_newest(folder, say=said.append)) == 2, seed
        assert len(said) == 1
        assert str(newest) in said[0]
        assert any(name in said[0] for name in names.split("|")), (seed, names, said)
        assert said[0].endswith("Going on from the newest checkpoint that is whole, step 2.")


def test_each_damaged_checkpoint_is_named(old: Path) -> None:
    flip(old / "step-00000003" / "weights.safetensors", 999)
    (old / "step-00000002" / "manifest.json").unlink()
    said: list[str] = []
    assert check_whole(load_newest(old, say=said.append)) == 1
    assert len(said) == 2
    assert "step-00000003/weights.safetensors is damaged" in said[0]
    assert "step-00000002/manifest.json is missing" in said[1]


def test_without_any_good_one_it_says_so_and_does_not_begin_again(old: Path) -> None:
    for step in (1, 2, 3):
        flip(old / f"step-{step:08d}" / "optimizer.safetensors", 4321)
    with pytest.raises(LinnetError, match=r"No checkpoint in .* is whole") as caught:
        load_newest(old, say=quiet)
    assert all(f"step-{step:08d}/optimizer.safetensors" in str(caught.value) for step in (1, 2, 3))


def test_a_folder_under_a_wrong_name_is_refused(old: Path) -> None:
    (old / "step-00000003").rename(old / "step-00000009")
    said: list[str] = []
    assert check_whole(load_newest(old, say=said.append)) == 2
    assert "step-00000009 is damaged: it holds the checkpoint of step 3" in said[0]


def test_another_folder_with_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001"
    path.mkdir()
    files.write_manifest(path, extra={})
    with pytest.raises(LinnetError, match="is not a checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_version_is_refused_and_never_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    body = json.loads((newest / "manifest.json").read_bytes())
    del body["sha256"]
    body["format_version"] = 2
    digest = hashlib.sha256(files.json_bytes(body)).hexdigest()
    files.write_json(newest / "manifest.json", {**body, "sha256": digest})
    with pytest.raises(FormatVersionError, match="format version 2"):
        load_newest(tmp_path, say=print)
    assert saved_steps(tmp_path) == [1, 2]
