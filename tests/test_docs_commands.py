"""Every command of README and docs, as it is written.

The pages that only look at data run with the fast tests, the others with the slow ones. The hub is
tests/loopback_hub.py. What is not run is in `NOT_RUN`.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import SHARED_DATA
from tests.loopback_hub import LoopbackHub
from tests.pages import ROOT, Reader, blocks_of, pages, publish
from tests.warm_shell import WarmShell

SYSTEMS = ("README.md", "math.md", "chat.md", "scratch.md", "lines.md", "papers.md")
# Pages that only look at data.
FAST = ("prepare.md", "formats.md", "filters.md", "hub.md")
# Page -> how many of its blocks are not run. Each says why on the page.
NOT_RUN = {"README.md": 1, "CONTRIBUTING.md": 1, "demo.md": 1, "lora.md": 1, "several.md": 1, "train.md": 1}
MOVED = {"scientific_papers": "armanc/scientific_papers"}


def has_commands(page: Path) -> bool:
    return any(block.language in ("sh", "python") and block.mark != "not run" for block in blocks_of(page))


# The others; they take for granted the runs that they name and do not make.
SLOW = [page.name for page in pages() if has_commands(page) and page.name not in (*SYSTEMS, *FAST)]


class Shell(NamedTuple):
    """Where pages are typed: the environment, and a folder for runs that pages take for granted."""

    env: dict[str, str]
    store: Path


def environment(base: Path, endpoint: str, path: str) -> dict[str, str]:
    """All that a shell gets: a home and caches of its own, and the hub."""
    (base / "home").mkdir(exist_ok=True)
    return {
        "PATH": path,
        "HOME": str(base / "home"),
        "HF_HOME": str(base / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": "mine",
        "HF_HUB_DISABLE_XET": "1",  # The hub of the tests takes uploads by git LFS.
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Where `linnet` and `python` are warm. The hub's data are small and made up; with a parameter, real."""
    base = tmp_path_factory.mktemp("pages")
    publish(base / "hub", real=getattr(request, "param", None))
    with LoopbackHub(base / "hub", moved=MOVED, writers={"mine": "me"}) as hub:
        env = environment(base, hub.endpoint, f"{base}/bin{os.pathsep}/usr/bin{os.pathsep}/bin")
        env["PYTHONPATH"] = str(ROOT)
        with WarmShell(base / "bin", env):
            (base / "bin" / "torchrun").symlink_to(Path(sys.executable).parent / "torchrun")
            yield Shell(env, base / "store")


def page_named(name: str) -> Path:
    return next(page for page in pages() if page.name == name)


def activate(folder: Path) -> None:
    """A .venv to enter, as `make` leaves it; `linnet` is in PATH already."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()


@pytest.mark.parametrize("name", FAST)
def test_a_page_about_data(shell: Shell, tmp_path: Path, name: str) -> None:
    Reader(tmp_path, shell.env, store=shell.store).read(page_named(name))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SLOW)
def test_a_page_that_trains(shell: Shell, tmp_path: Path, name: str) -> None:
    Reader(tmp_path, shell.env, store=shell.store).read(page_named(name))


def give_real_data(folder: Path, shared: Path) -> None:
    """The files of real text whose `inspect` is quoted."""
    for name in ("chat/sgd_train.jsonl", "papers/plos.jsonl", "text/tinyshakespeare.txt"):
        shutil.copy(shared / name, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system(shell: Shell, tmp_path: Path, name: str) -> None:
    """README and the five pages make all that they use."""
    reader = Reader(tmp_path, shell.env)
    activate(tmp_path)
    reader.read(page_named(name))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shell", [pytest.param(SHARED_DATA, id="real")], indirect=True)
@pytest.mark.parametrize("name", SYSTEMS[1:])
def test_what_is_quoted_of_real_data(shared_data: Path, shell: Shell, tmp_path: Path, name: str) -> None:
    reader = Reader(tmp_path, shell.env)
    give_real_data(tmp_path, shared_data)
    reader.compare_quotes(page_named(name))


def test_what_is_not_run_is_listed() -> None:
    skipped = [block for page in pages() for block in blocks_of(page) if block.mark == "not run"]
    assert {name: sum(block.page.name == name for block in skipped) for name in NOT_RUN} == NOT_RUN
    assert len(skipped) == sum(NOT_RUN.values()), [block.place for block in skipped]
    assert all(block.reason for block in skipped)


def test_a_page_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    """The harness itself: a failing command, an output that was not printed, a Python line that raises."""
    wrong = {
        "ended with 1": "```sh\ntrue\nfalse | cat\n```\n",
        "says 'two'": "```sh\nprintf 'one\\nthree\\n'\n```\n<!-- output -->\n```text\none\ntwo\n```\n",
        "page.py": "```python\n1 / 0\n```\n",
    }
    env = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    for number, (message, text) in enumerate(wrong.items()):
        page = tmp_path / "page.md"
        page.write_text(text)
        with pytest.raises(AssertionError, match=message):
            Reader(tmp_path / str(number), env).read(page)
