"""The first thing that a newcomer runs: `linnet demo`, whole, without a network."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def isolated() -> list[str]:
    """A prefix for a command that gets no network at all, where this system allows it."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    works = shutil.which("unshare") and subprocess.run([*unshare, "true"], check=False).returncode == 0
    return unshare if works else []


def share_of_known_words(text: str, corpus: str) -> float:
    """How many of a text's words stand in the corpus as whole words."""
    known = set(re.findall(r"[A-Za-z]{2,}", corpus))
    words = re.findall(r"[A-Za-z]{2,}", text)
    return sum(word in known for word in words) / max(1, len(words))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_learns_to_write_documentation(tmp_path: Path) -> None:
    command = [*isolated(), sys.executable, "-m", "linnet", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("docstrings of", "before training", "midway", "at the end", "linnet generate runs/demo"):
        assert words in done.stdout
    run = tmp_path / "runs" / "demo"
    assert (run / "loss.png").is_file()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    samples = [json.loads(line)["text"] for line in (run / "samples.jsonl").read_text().splitlines()]
    corpus = "".join(path.read_text() for path in (tmp_path / "prepared" / "demo-corpus").glob("*.txt"))
    assert share_of_known_words(samples[-1], corpus) > 0.8
    assert share_of_known_words(samples[0], corpus) < 0.6
    # The look of pydoc: indented lines, names with their arguments, sections in capitals.
    assert re.search(r"\n {4,}\S", samples[-1])
    assert re.search(r"\w+\(|\n[A-Z]{4,}\n", samples[-1])
