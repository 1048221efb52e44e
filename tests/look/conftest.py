"""`linnet inspect` as it is typed, and a file of questions with all that can be wrong."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from tests.commands import Command, runner
from tests.look.rows import question, write_rows


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(FILE, ...)` runs `linnet inspect` in an empty folder, with an empty cache of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    return runner(monkeypatch, capfd, "inspect")


@pytest.fixture
def math(tmp_path: Path) -> Path:
    """50 good rows, of which one is there twice and one nearly so, two bad ones, an empty line."""
    rows: list[Any] = [question(number) for number in range(1, 49)]
    rows.append(rows[3])
    rows.append({**rows[4], "answer": rows[4]["answer"] + " Good."})
    rows.append({"question": "And this?", "answer": ""})
    path = write_rows(tmp_path / "math.jsonl", rows)
    with path.open("a") as file:
        file.write('\n{"question": "half\n')
    return path
