"""What the tests of the sinks share: a home without accounts, and a run without sinks to compare with."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Command, runner
from tests.track.sink_readers import TRAIN, bits
from tests.training.test_resume import write_text
from tests.warm import Warm


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home, and nobody's accounts."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(("WANDB_", "TRACKIO_", "XDG_", "NETRC"))]:
            patch.delenv(key)
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def warm(home: Path) -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture(scope="module")
def plain(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bits of a run without sinks."""
    folder = tmp_path_factory.mktemp("plain")
    write_text(folder)
    code, output = warm.run(*TRAIN, folder=folder)
    assert code == 0, output
    return bits(folder / "run")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def linnet(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    return runner(monkeypatch, capfd)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for modules that the sinks' processes find before the installed ones."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder
