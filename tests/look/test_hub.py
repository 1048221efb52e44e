"""What `linnet inspect` says of a data set on the hub; and that a bare file asks no hub."""

import json
from pathlib import Path

import pytest

from tests import hub_repositories as repositories
from tests.look.rows import question, write_rows
from tests.loopback_hub import LoopbackHub, run_python

CLI = "from linnet.__main__ import main; main()"


@pytest.mark.slow
def test_a_data_set_on_the_hub(tmp_path: Path) -> None:
    repositories.chat(tmp_path / "hub")
    repositories.gpt2(tmp_path / "hub")
    with LoopbackHub(tmp_path / "hub") as hub:
        done = run_python(
            CLI, "inspect", "chat", "--json", "--html", "page.html", home=tmp_path, endpoint=hub.endpoint
        )
        shown = run_python(CLI, "inspect", "chat", home=tmp_path, endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert shown.returncode == 0, shown.stderr
    report = json.loads(done.stdout)
    assert report["validation"]["rows"] > 0
    assert report["looked_at"] == report["rows"]
    assert report["first"]
    assert any("ultrachat_200k" in note for note in report["notes"])
    assert "HuggingFaceH4/ultrachat_200k" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "HuggingFaceH4/ultrachat_200k" in " ".join(shown.stdout.split())


@pytest.mark.slow
def test_a_bare_file_asks_no_hub(tmp_path: Path) -> None:
    write_rows(tmp_path / "math.jsonl", [question(number) for number in range(30)])
    repositories.gpt2(tmp_path / "hub")
    with LoopbackHub(tmp_path / "hub") as hub:
        done = run_python(CLI, "inspect", "math.jsonl", "--json", home=tmp_path, endpoint=hub.endpoint)
        assert hub.requests == []
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["estimated"]
