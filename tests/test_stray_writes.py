"""Nothing is written outside the run folder, the prepared data, HF_HOME (and the mirror, where one is asked for).

How    The verbs run in one process whose HOME, TMPDIR, HF_HOME and working folder are new. What lies in these folders
       afterwards is seen everywhere. Where strace can watch (Linux), each call that changes a file is seen as well, so
       also what is gone again, or lies elsewhere on the machine. Audit hooks of Python would not see what torch, Arrow
       and the tokenizers do.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.test_resume import KEYS, write_text

PROGRAM = """
import json, sys
from linnet.__main__ import main
for words in json.load(sys.stdin):
    sys.argv = ["linnet", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{words} ended with {ended.code}")
"""
KEYS_HERE = [key.replace("data.prepared=store", "data.prepared=prepared/text") for key in KEYS]
COMMANDS = [
    ["prepare", "scratch", *KEYS_HERE],
    ["inspect", "scratch", *KEYS_HERE],
    ["inspect", "text.txt"],
    ["train", "scratch", *KEYS_HERE, "--run", "runs/one", "--mirror", "drive"],
    ["train", "scratch", *KEYS_HERE, "train.optimizer=adamw", "--run", "runs/two", "--dry-run"],
    ["train", "scratch", *KEYS_HERE, "--run", "runs/two", "--profile"],
    ["eval", "runs/one"],
    ["generate", "runs/one", "the bird", "--max-new-tokens", "4"],
    ["runs", "runs"],
]
ALLOWED = ("runs/", "prepared/", "drive/", "hf/")
PASSING = {  # In TMPDIR, and gone again.
    r"tmp/\w{8}": "Python's tempfile tries out whether TMPDIR can be written",
    r"tmp/linnet-\w{8}(/fontlist-.*)?": "matplotlib's list of fonts, else in HOME (track/plots.py)",
    r"tmp/linnet-inspect-\w{8}(/.*)?": "the data that `inspect FILE` prepares aside (linnet/inspection.py)",
}
STAYING = {
    r"tmp/torchinductor_\w+": "torch makes the folder of its compiler's cache where it imports that: --profile"
}
CALLS = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,mknod,mknodat"


def strace() -> bool:
    """Whether strace is here and may watch (containers often forbid it)."""
    if shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
    )


def written(log: str, folder: Path) -> set[str]:
    """The paths that succeeding calls created or opened for writing, relative to `folder` where they lie in it.

    `12 openat(AT_FDCWD</work>, "runs/x", O_WRONLY|O_CREAT, 0666) = 3</work/runs/x>`; of a rename the last name counts.
    """
    found = set()
    for line in log.splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)\) += (\d+)", line)
        if match is None or (
            match[1].startswith("open") and not re.search("O_WRONLY|O_RDWR|O_CREAT", match[2])
        ):
            continue
        inside, name = re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"', match[2])[-1]
        path = Path(os.path.normpath(folder / (inside or ".") / name))
        found.add(str(path.relative_to(folder) if path.is_relative_to(folder) else path))
    return found


def is_stray(path: str) -> bool:
    """Outside of what a user expects, and not Python's own bytecode beside a module, nor a device."""
    bytecode = re.search(r"/__pycache__(/[^/]+\.pyc(\.\d+)?)?$", path)
    return not (f"{path}/".startswith((*ALLOWED, "/dev/", "/proc/")) or bytecode)


def watch(folder: Path, commands: list[list[str]]) -> tuple[set[str], set[str]]:
    """Run commands in `folder`; returns what is left where it should not be, and what was written there meanwhile."""
    write_text(folder)
    for name in ("home", "tmp", "hf", "drive"):
        (folder / name).mkdir()
    before = set(folder.rglob("*"))
    environ = {key: os.environ[key] for key in ("PATH", "VIRTUAL_ENV", "LANG") if key in os.environ}
    environ |= {
        "HOME": f"{folder}/home",
        "TMPDIR": f"{folder}/tmp",
        "HF_HOME": f"{folder}/hf",
        "OMP_NUM_THREADS": "1",
    }
    log = folder.parent / "strace.txt"
    watched = ["strace", "-f", "-y", "-s", "4096", "--seccomp-bpf", "-o", str(log), "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*(watched if strace() else []), sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    left = {str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before}
    passing = written(log.read_text(errors="replace"), folder) if log.exists() else set()
    return {path for path in left if is_stray(path)}, {path for path in passing - left if is_stray(path)}


def unknown(paths: set[str], known: dict[str, str]) -> list[str]:
    return sorted(path for path in paths if not any(re.fullmatch(pattern, path) for pattern in known))


@pytest.mark.slow
def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    left, passing = watch(folder, COMMANDS)
    assert unknown(left, STAYING) == []
    assert unknown(passing, PASSING) == []
    assert (folder / "drive/one/model/model.safetensors").is_file()


@pytest.mark.slow
def test_nor_by_what_watches_the_run(tmp_path: Path) -> None:
    """W&B and trackio have folders of their own in HOME by default; those that are not installed say so."""
    folder = tmp_path / "work"
    folder.mkdir()
    sinks = 'track.sinks=["tensorboard", "wandb", "trackio"]'
    left, passing = watch(folder, [["train", "scratch", *KEYS_HERE, sinks, "--run", "runs/one"]])
    assert unknown(left, STAYING) == []
    media = {
        r"(tmp|/tmp)/(tmp\w+|wandb-).*": "W&B's and trackio's tables; sockets, whose paths must be short"
    }
    assert unknown(passing, PASSING | media) == []
