"""Someone who has a clone, Python, make and pip, and follows README and the pages of the five systems to the letter.

Everything is new: the clone, the virtual environment, the home, the caches. Only pip may use a network; the hub is
tests/loopback_hub.py. `linnet` is the real program here, with all its imports.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback_hub import GUARD, LoopbackHub
from tests.pages import ROOT, Reader, publish
from tests.test_docs_commands import MOVED, SYSTEMS, environment, page_named

# What pip says where it has no network, or not all packages.
NO_PACKAGES = re.compile(
    r"No matching distribution|ConnectionError|NewConnectionError|ReadTimeout|unreachable"
)


def clone(folder: Path) -> None:
    """The files of the checkout that git knows or would take, as they are now."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    for name in done.stdout.decode().split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def install(folder: Path, env: dict[str, str]) -> None:
    """What `make demo` does before the demo. pip keeps its settings, which say where packages are."""
    pip = {
        name: os.environ[name] for name in os.environ if re.match(r"HOME$|PIP_|SSL_|\w+_proxy$", name, re.I)
    }
    command = ["make", ".venv/demo.done"]
    done = subprocess.run(command, cwd=folder, env=env | pip, capture_output=True, text=True, check=False)
    if done.returncode and NO_PACKAGES.search(done.stderr):
        pytest.skip(f"pip cannot install here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_newcomer_follows_the_pages(tmp_path: Path) -> None:
    folder, stray = tmp_path / "linnet", tmp_path / "stray.txt"
    clone(folder)
    publish(tmp_path / "hub")
    with LoopbackHub(tmp_path / "hub", moved=MOVED) as hub:
        python = str(Path(sys.base_prefix) / "bin")
        env = environment(tmp_path, hub.endpoint, os.pathsep.join([python, "/usr/bin", "/bin"]))
        install(folder, env)
        env |= {"PYTHONPATH": str(GUARD), "LINNET_TEST_STRAY": str(stray)}
        terminal = Reader(folder, env)
        for name in SYSTEMS:
            terminal.read(folder / page_named(name).relative_to(ROOT))
            for made in ("runs", "prepared"):  # The next page begins anew, as its reader may.
                shutil.rmtree(folder / made, ignore_errors=True)
    assert not stray.exists(), f"other hosts were asked: {stray.read_text()}"
