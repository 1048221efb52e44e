"""A second place for a run: what is copied, what comes home, and what goes wrong on the way."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import linnet
from linnet import files
from linnet.errors import LinnetError
from linnet.mirror import Mirror, restore, watching
from linnet.mirror.process import Copier
from tests.training.test_resume import STEPS, Result, folder_with_text, result_of, write_text
from tests.training.test_resume import TRAIN as RESUMED
from tests.warm import Warm

TRAIN = tuple(word.replace("eval_every=10", "eval_every=15") for word in RESUMED)
MIRRORED = (*TRAIN, "--mirror", "drive")
FAULTS = Path(__file__).parent / "mirror_faults"


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture(scope="module")
def whole(warm: Warm) -> Result:
    """What a run without a mirror comes to."""
    with folder_with_text() as folder:
        code, output = warm.run(*TRAIN, folder=folder)
        assert code == 0, output
        return result_of(folder / "run")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with the text, without a run, and with a drive."""
    with folder_with_text() as folder:
        (folder / "drive").mkdir()
        yield folder


def can_mount() -> bool:
    """Whether this system lets an ordinary user mount a disk of its own."""
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


def disturbed(**faults: Any) -> dict[str, str]:
    """The environment in which the process that copies is disturbed (tests/mirror_faults)."""
    return {"LINNET_TEST_MIRROR": json.dumps(faults), "PYTHONPATH": str(FAULTS)}


def run(warm: Warm, folder: Path, *more: str, **faults: Any) -> str:
    """`linnet train --mirror drive` to its end; returns what it said."""
    faults = {"environ": disturbed(**faults)} if faults else {}
    code, output = warm.run(*MIRRORED, *more, folder=folder, faults=faults)
    assert code == 0, output
    assert not list((folder / "run").rglob(".*")), "no leftovers"
    return output


def stop_at_step_7(warm: Warm, folder: Path, argv: tuple[str, ...] = MIRRORED, **faults: Any) -> str:
    """Train until SIGTERM comes in step 7; steps 5 and 7 are then saved."""
    where: dict[str, Any] = {"point": "forward", "count": 14, "signals": [signal.SIGTERM]}
    code, output = warm.run(*argv, folder=folder, faults=where | {"environ": disturbed(**faults)})
    assert code == 143, output
    assert "Traceback" not in output
    return output


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def files_of(run: Path) -> dict[str, bytes]:
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def weights(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / "weights.safetensors"


# --- what is copied ---


def test_the_mirror_is_a_run_folder(warm: Warm, folder: Path, whole: Result) -> None:
    assert "mirror" not in run(warm, folder).lower(), "nothing is said where nothing is wrong"
    home, there = files_of(folder / "run"), files_of(folder / "drive/run")
    assert result_of(folder / "run") == whole
    assert steps(folder / "run") == [25, 30]
    kept = steps(folder / "drive/run")
    assert len(kept) == 2
    assert kept[1] == 30
    # On a busy machine it passes over a checkpoint that was followed by another while it copied an older one.
    older = f"checkpoints/step-{kept[0]:08d}/" if kept[0] < 25 else "none"
    own = {n for n in there if "/run/" in n or n == "model/manifest.json" or n.startswith(older)}
    assert there.keys() - own <= home.keys()
    assert all(there[name] == home[name] for name in there.keys() - own)
    needed = {"recipe.toml", "environment.json", "metrics.jsonl", "samples.jsonl", "model/model.safetensors"}
    assert needed <= there.keys()
    model = linnet.load(folder / "drive/run")
    assert model.generate("the bird", max_new_tokens=3, temperature=0)


def test_the_process_that_copies_imports_no_torch() -> None:
    program = "import linnet.mirror.process, sys; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.slow
def test_a_finished_run_completes_its_mirror(warm: Warm, folder: Path, whole: Result) -> None:
    code, output = warm.run(*TRAIN, folder=folder)
    assert code == 0, output
    assert "finished" in run(warm, folder)
    assert steps(folder / "drive/run") == [30]
    shutil.rmtree(folder / "run")
    run(warm, folder)
    assert result_of(folder / "run") == whole


# --- what comes home ---


def test_a_fresh_machine_goes_on_from_the_mirror(warm: Warm, folder: Path, whole: Result) -> None:
    stop_at_step_7(warm, folder)
    assert steps(folder / "drive/run") == [5, 7]
    shutil.rmtree(folder / "run")
    output = run(warm, folder)
    assert "Bringing step 7 from the mirror" in output
    assert "goes on at step 7" in output
    assert result_of(folder / "run") == whole
    assert steps(folder / "drive/run") == [25, 30]


@pytest.mark.parametrize("argv", [TRAIN, pytest.param(MIRRORED, marks=pytest.mark.slow)])
def test_killed_between_bringing_and_unpacking(
    warm: Warm, folder: Path, whole: Result, argv: tuple[str, ...]
) -> None:
    """What came home is one folder, so the next start goes on from it, with the mirror or without."""
    stop_at_step_7(warm, folder)
    shutil.rmtree(folder / "run")
    restore(folder / "run", folder / "drive", recipe="scratch", say=print)
    assert [path.name for path in (folder / "run").iterdir()] == ["checkpoints"]
    code, output = warm.run(*argv, folder=folder)
    assert code == 0, output
    assert "goes on at step 7" in output
    assert result_of(folder / "run") == whole


def test_a_damaged_copy_is_passed_over_and_said(warm: Warm, folder: Path, whole: Result) -> None:
    stop_at_step_7(warm, folder)
    shutil.rmtree(folder / "run")
    flip_byte(weights(folder / "drive/run", 7))
    (folder / "drive/run/checkpoints/.step-00000009.tmp").mkdir()
    (folder / "drive/run/.report.html.tmp").write_text("<")
    (folder / "drive/run/model").rename(folder / "drive/run/.model.old")  # Killed between two renames.
    output = run(warm, folder)
    assert "drive/run/checkpoints/step-00000007/weights.safetensors is damaged" in output
    assert "goes on at step 5" in output
    assert result_of(folder / "run") == whole
    assert not list((folder / "drive").rglob(".*"))
    assert steps(folder / "drive/run") == [25, 30]


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", pytest.param("model/tokenizer.json", marks=pytest.mark.slow)]
)
def test_without_a_whole_copy_it_does_not_begin_again_silently(warm: Warm, folder: Path, name: str) -> None:
    stop_at_step_7(warm, folder)
    shutil.rmtree(folder / "run")
    flip_byte(folder / "drive/run" / name)
    before = files_of(folder / "drive")
    code, output = warm.run(*MIRRORED, folder=folder)
    assert code == 1, output
    assert f"drive/run/{name} is damaged" in output.splitlines()[-1]
    assert files_of(folder / "drive") == before
    assert not steps(folder / "run")


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_here_comes_from_the_mirror(
    warm: Warm, folder: Path, whole: Result
) -> None:
    stop_at_step_7(warm, folder)
    flip_byte(weights(folder / "run", 7))
    output = run(warm, folder)
    assert "Bringing step 7" in output
    assert "goes on at step 7" in output
    assert result_of(folder / "run") == whole


@pytest.mark.slow
def test_a_newer_run_here_wins_and_reaches_the_mirror(warm: Warm, folder: Path, whole: Result) -> None:
    stop_at_step_7(warm, folder)
    faults = {"point": "step", "count": 4, "signals": [signal.SIGTERM]}
    code, output = warm.run(*TRAIN, folder=folder, faults=faults)
    assert code == 143, output
    assert steps(folder / "run")[-1] == 11
    assert steps(folder / "drive/run") == [5, 7]
    output = run(warm, folder)
    assert "goes on at step 11" in output
    assert result_of(folder / "run") == whole


@pytest.mark.slow
def test_rows_that_were_written_twice_are_those_of_the_history_that_counts(
    warm: Warm, folder: Path, whole: Result
) -> None:
    """The mirror is at step 7; here the run went back to 5 and has written steps 6 to 10 again, without a mirror.

    Their `time_s` differ, so the sizes of the rows do: the checkpoints of one history do not fit the other's rows.
    """
    stop_at_step_7(warm, folder)
    shutil.rmtree(folder / "run/checkpoints/step-00000007")
    faults = {"point": "step", "count": 1, "signals": [signal.SIGTERM]}
    code, output = warm.run(*TRAIN, folder=folder, faults=faults)
    assert (code, steps(folder / "run")) == (143, [5, 6]), output
    assert "Bringing step 7" in run(warm, folder)
    assert result_of(folder / "run") == whole


def test_another_recipe_or_run_under_the_name_is_refused(warm: Warm, folder: Path) -> None:
    stop_at_step_7(warm, folder)
    before = files_of(folder / "drive")
    shutil.move(folder / "run", folder / "old")
    other = ["shakespeare-char" if word == "scratch" else word for word in MIRRORED]
    code, output = warm.run(*other, folder=folder)
    assert code == 1, output
    assert "drive/run holds a run of the recipe scratch, not shakespeare-char" in output.splitlines()[-1]
    stop_at_step_7(warm, folder, TRAIN)
    here = files_of(folder / "run")
    code, output = warm.run(*MIRRORED, folder=folder)
    assert code == 1, output
    assert "drive/run holds another run than" in output.splitlines()[-1]
    assert files_of(folder / "drive") == before
    assert files_of(folder / "run") == here


@pytest.mark.slow
def test_a_run_that_went_on_in_both_places_is_refused(warm: Warm, folder: Path) -> None:
    stop_at_step_7(warm, folder)
    shutil.copytree(folder / "run", folder / "here/run")
    faults = {"point": "step", "count": 4, "signals": [signal.SIGTERM]}
    code, _ = warm.run(*MIRRORED, folder=folder, faults=faults)
    assert code == 143
    assert steps(folder / "drive/run")[-1] == 11
    argv = ["here/run" if word == "run" else word for word in TRAIN]
    code, _ = warm.run(*argv, folder=folder, faults=faults)
    assert code == 143
    before = files_of(folder / "drive")
    code, output = warm.run(*argv, "--mirror", "drive", folder=folder)
    assert code == 1, output
    assert "are one run that went on separately in both places" in output.splitlines()[-1]
    assert files_of(folder / "drive") == before


@pytest.mark.slow
def test_a_folder_of_something_else_is_left_alone(warm: Warm, folder: Path) -> None:
    (folder / "drive/run").mkdir()
    (folder / "drive/run/photo.jpg").write_bytes(b"x")
    output = run(warm, folder)
    assert output.count("drive/run holds something else than a run") == 1
    assert files_of(folder / "drive") == {"run/photo.jpg": b"x"}


@pytest.mark.slow
def test_a_drive_that_is_not_mounted_is_an_error_where_nothing_is_here(warm: Warm, folder: Path) -> None:
    argv = (*TRAIN, "--mirror", "media/drive/copies")
    code, output = warm.run(*argv, folder=folder)
    assert code == 1, output
    assert "cannot be read (No such file or directory: " in output.splitlines()[-1]
    stop_at_step_7(warm, folder, TRAIN)
    code, output = warm.run(*argv, folder=folder)
    assert code == 0, output
    assert "going on with what is here" in output
    assert output.count("has no copy of step") == 1, output
    assert not (folder / "media").exists()


def test_a_mirror_in_the_run_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinnetError, match="into the run itself"):
        Mirror(tmp_path / "runs/x", tmp_path / "runs", say=print)
    with pytest.raises(LinnetError, match="into the run itself"):
        restore(tmp_path / "runs/x", tmp_path / "runs/x/model", recipe="scratch", say=print)


# --- trouble: through the command line ---


def test_a_full_mirror_is_said_once_and_tried_again(warm: Warm, folder: Path, whole: Result) -> None:
    output = run(warm, folder, file_size=15_000)
    assert output.count("has no copy of step") == 1
    assert "File too large" in output
    assert "it is safe here, and the same command copies it" in output
    assert result_of(folder / "run") == whole
    assert not steps(folder / "drive/run")
    assert not list((folder / "drive").rglob(".*"))
    assert "finished" in run(warm, folder)
    assert steps(folder / "drive/run") == [30]


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs `unshare -Urm` to mount a small disk")
def test_a_real_small_disk(folder: Path, whole: Result) -> None:
    """80 kB do not take a checkpoint, 2 MB all but the report (5 MB), 20 MB everything."""
    train = shlex.join([sys.executable, "-m", "linnet", *MIRRORED])
    script = f"""
        export OMP_NUM_THREADS=1  # as `whole`: LayerNorm's slopes are summed by thread, so their last bits depend on it
        mount -t tmpfs -o size=80k none drive; {train} 2> said-1
        mount -o remount,size=2m none drive; {train} > said-2
        cp -r drive/run copy
        mount -o remount,size=20m none drive; {train} > said-3
        cmp run/report.html drive/run/report.html"""
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-ec", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, third = ((folder / f"said-{number}").read_text() for number in (1, 2, 3))
    assert first.count("has no copy of step 5 (No space left on device)") == 1
    assert first.count("The mirror") == 2
    assert "it is safe here, and the same command copies it" in first
    assert "has step 30 without its report.html (No space left on device)." in second
    assert "mirror" not in third
    assert weights(folder / "copy", STEPS).read_bytes() == whole.tensors["weights.safetensors"]


@pytest.mark.slow
def test_a_mirror_that_is_no_folder(warm: Warm, folder: Path, whole: Result) -> None:
    (folder / "drive/run").write_text("a file")
    output = run(warm, folder)
    assert output.count("The mirror") == 2, output
    assert result_of(folder / "run") == whole


@pytest.mark.slow
def test_a_slow_mirror_gets_the_newest(warm: Warm, folder: Path, whole: Result) -> None:
    """6 checkpoints in a second, 3 s for a copy: those between are skipped, the last one is waited for."""
    output = run(warm, folder, delay=0.02)
    assert "Waiting for the mirror, at most 600 s, while step" in output
    assert result_of(folder / "run") == whole
    assert steps(folder / "drive/run")[-1] == 30


def test_a_signal_saves_here_first_and_then_there(warm: Warm, folder: Path, whole: Result) -> None:
    output = stop_at_step_7(warm, folder, delay=0.01)
    assert "Waiting for the mirror, at most 20 s" in output
    assert output.splitlines()[-1].startswith("linnet: stopped by SIGTERM")
    assert steps(folder / "run") == steps(folder / "drive/run") == [5, 7]


@pytest.mark.parametrize(
    "kills",
    [
        2,
        pytest.param(12, marks=pytest.mark.slow),
        pytest.param(100, marks=[pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(3000)]),
    ],
)
def test_killed_anywhere_in_a_copy_it_is_bit_identical(
    warm: Warm, folder: Path, whole: Result, kills: int
) -> None:
    """kill -9 of the training, the copying process, or both, at a random change of the disk by the latter.

    Then the run here is lost, or not, and goes on with the mirror to its end. One in five hits the way home.
    """
    rng = random.Random(kills)
    for number in range(kills):
        strike = rng.choice(["training", "both", "both", "copier"])
        environ = disturbed(count=rng.randint(1, 300), strike=strike)
        if number % 5 == 0:
            stop_at_step_7(warm, folder)
            shutil.rmtree(folder / "run")
            environ = disturbed(count=rng.randint(1, 60), strike=strike)
        child = warm.start(*MIRRORED, folder=folder, faults={"environ": environ})
        code = child.wait()
        assert code in (0, -signal.SIGKILL, 1), child.output
        assert "Traceback" not in child.output
        time.sleep(0.1)  # The other process ends when the training has.
        if rng.random() < 0.5:
            shutil.rmtree(folder / "run")
        run(warm, folder)
        assert result_of(folder / "run") == whole, f"after kill {number}"
        shutil.rmtree(folder / "run")
        run(warm, folder)
        assert result_of(folder / "run") == whole, f"the mirror's own, after kill {number}"
        assert not list((folder / "drive").rglob(".*"))
        shutil.rmtree(folder / "run")
        shutil.rmtree(folder / "drive/run")


# --- trouble: one copy at a time ---


@pytest.fixture(scope="module")
def saved(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all its six checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    write_text(folder)
    code, output = warm.run(*TRAIN, "train.keep=9", folder=folder)
    assert code == 0, output
    return folder / "run"


class Said(list[str]):
    """What the mirror said."""

    def __call__(self, text: str) -> None:
        self.append(text)


def until(mirror: Mirror, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        mirror.look()
        time.sleep(0.01)


def disturb(monkeypatch: pytest.MonkeyPatch, **faults: Any) -> None:
    for name, value in disturbed(**faults).items():
        monkeypatch.setenv(name, value)


def test_a_mirror_that_vanishes_and_comes_back(saved: Path, tmp_path: Path) -> None:
    said, place = Said(), tmp_path / "drive"
    mirror = Mirror(saved, place, say=said)
    mirror.offer(5)
    until(mirror, lambda: steps(place / "run") == [5])
    until(mirror, lambda: mirror._running is None)
    shutil.rmtree(place)
    for step in (10, 15):
        mirror.offer(step)
        until(mirror, lambda: mirror._running is None)
    assert len(said) == 1
    assert "has no copy of step 10 (No such file or directory: " in said[0]
    assert not place.exists()
    place.mkdir()
    mirror.offer(20)
    until(mirror, lambda: mirror._running is None)
    assert said[1:] == [f"The mirror {place}/run is there again: it has step 20."]
    mirror.close()
    assert steps(place / "run") == [20]
    assert len(said) == 2


def test_a_mirror_that_hangs_is_said_and_given_up_at_the_end(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really: opening a FIFO for reading waits for a writer, for ever."""
    (tmp_path / "run/model").mkdir(parents=True)
    os.mkfifo(tmp_path / "run/model/manifest.json")
    monkeypatch.setattr(watching, "SILENT_S", 0.5)
    said = Said()
    mirror = Mirror(saved, tmp_path, say=said)
    started = time.monotonic()
    mirror.offer(5)
    mirror.offer(10)
    assert time.monotonic() - started < 0.5
    until(mirror, lambda: bool(said))
    assert "has not answered for 0 s, while step 5 is copied to" in said[0]
    started = time.monotonic()
    mirror.close()
    assert time.monotonic() - started < 1.5
    assert "got no checkpoint of this training, not its last one, step 10" in said[-1]
    assert len(said) == 2
    (tmp_path / "run/model/manifest.json").unlink()
    watching.complete(saved, tmp_path, step=30, say=said)
    assert steps(tmp_path / "run")[-1] == 30


def test_a_process_that_stands_still_is_replaced(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SILENT_S", 0.5)
    monkeypatch.setattr(watching, "STUCK_S", 1.0)
    disturb(monkeypatch, count=20, strike="stop")
    said = Said()
    mirror = Mirror(saved, tmp_path, say=said)
    mirror.offer(5)
    until(mirror, lambda: mirror._running is None)
    assert "has not answered" in said[0]
    disturb(monkeypatch)
    mirror.offer(10)
    until(mirror, lambda: mirror._running is None)
    mirror.close()
    assert steps(tmp_path / "run") == [10]
    assert "is there again" in said[1]
    assert len(said) == 2


def test_after_a_signal_the_wait_is_short(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SIGNAL_S", 1.5)
    disturb(monkeypatch, delay=0.3)
    for stopped in (lambda: True, iter([False, False, False, *[True] * 99]).__next__):
        said = Said()
        mirror = Mirror(saved, tmp_path, say=said)
        mirror.offer(30)
        started = time.monotonic()
        mirror.close(stopped=stopped)
        assert time.monotonic() - started < 3
        assert "not its last one, step 30" in said[-1]
        assert not list(saved.glob(".*"))


def test_without_hard_links_it_is_copied(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    watching.complete(saved, tmp_path, step=30, say=print)
    assert steps(tmp_path / "run") == [30]


def test_the_process_ends_with_the_training(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, delay=0.3)
    copier = Copier()
    copier.send(
        {
            "do": "fetch",
            "root": str(tmp_path / "run"),
            "place": str(saved.parent),
            "name": "run",
            "recipe": "scratch",
        }
    )
    assert "say" in copier.answers.get(timeout=20)
    assert copier._process.stdin is not None
    copier._process.stdin.close()
    assert copier._process.wait(5) == 0
    copier.end()


def test_what_is_pruned_here_is_not_pulled_away_from_under_a_copy(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, delay=0.02)
    home, place, said = tmp_path / "run", tmp_path / "drive", Said()
    shutil.copytree(saved, home)
    mirror = Mirror(home, place, say=said)
    mirror.offer(5)
    mirror.offer(10)
    mirror.offer(15)
    shutil.rmtree(home / "checkpoints")
    shutil.rmtree(home / "model")
    until(mirror, lambda: mirror._running is None)
    assert said == []
    assert steps(place / "run") == [5, 15]
    for step in (5, 15):
        files.verify_manifest(place / f"run/checkpoints/step-{step:08d}")
    assert (place / "run/model/model.safetensors").read_bytes() == (
        saved / "model/model.safetensors"
    ).read_bytes()
    assert not list((home / ".mirror.tmp").iterdir())
    mirror.close()
    assert not (home / ".mirror.tmp").exists()


def test_a_mirror_that_is_further_is_not_set_back(saved: Path, tmp_path: Path) -> None:
    """It could not be read when the run started; a damaged one is nothing to keep."""
    said = Said()
    watching.complete(saved, tmp_path, step=30, say=said)
    watching.complete(saved, tmp_path, step=5, say=said)
    assert "has no copy of step 5 (it is further (30 steps) than this run (5)" in said[0]
    assert steps(tmp_path / "run") == [30]
    flip_byte(weights(tmp_path / "run", 30))
    watching.complete(saved, tmp_path, step=5, say=said)
    assert steps(tmp_path / "run") == [5]


def test_it_prunes_there_as_here(saved: Path, tmp_path: Path) -> None:
    """The newest `train.keep` and the best; here the recipe says 9, so the last checkpoint is made to say 1."""
    home = tmp_path / "run"
    shutil.copytree(saved, home)
    last = home / "checkpoints/step-00000025"
    state = json.loads((last / "state.json").read_bytes())
    state["recipe"]["train"]["keep"], best = 1, state["loop"]["best_step"]
    (last / "state.json").write_bytes(files.json_bytes(state))
    files.write_manifest(last, extra={"kind": "checkpoint", "step": 25})
    (tmp_path / "drive").mkdir()
    mirror = Mirror(home, tmp_path / "drive", say=print)
    for step in (5, 10, 15, 20, 25):
        mirror.offer(step)
        until(mirror, lambda: mirror._running is None)
    mirror.close()
    assert best == 15
    assert steps(tmp_path / "drive/run") == [15, 25]
