"""The page, the terminal, and the parts that they show."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from linnet.inspection import inspect
from linnet.look.counts import lengths_of
from linnet.look.first import decode
from linnet.look.terminal import print_report
from linnet.tokenizer import train_bpe
from tests.commands import Command
from tests.look.rows import TINY, question, write_rows

HOSTILE = '<script>alert("x")</script><img src=http://example.com/a.png> {{ 7 * 7 }} \x1b[31m & \u202e'


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    rows: list[Any] = [{"question": HOSTILE, "answer": HOSTILE}]
    rows += [question(number) for number in range(30)]
    rows.append({"question": HOSTILE})
    return write_rows(tmp_path / "<b>.jsonl", rows)


def test_user_text_stays_text_on_the_page(command: Command, hostile: Path, tmp_path: Path) -> None:
    done = command(hostile.name, "--html", "page.html", *TINY)
    assert done.code == 0, done.err
    assert "page.html" in done.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>.jsonl" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "\x1b" not in page
    assert not re.findall(r'(?:src|href)\s*=\s*"', page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert 'class="learned"' in page


def test_colours_only_where_there_are_colours(
    math: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    report = inspect("math.jsonl", overrides=TINY, rows=1)

    def printed(**options: Any) -> str:
        console = Console(file=io.StringIO(), width=100, highlight=False, **options)
        print_report(report, console=console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    green = printed(force_terminal=True, color_system="standard")
    assert "\x1b[32m #### 2" in green or "\x1b[32m" in green
    assert "learned │" not in green
    for plain in (printed(), printed(force_terminal=True, color_system="standard", no_color=True)):
        assert "\x1b[32m" not in plain
        assert "learned │" in plain
        assert "read │" in plain
        assert "⏹" in plain


@pytest.mark.slow
def test_a_pipe_that_closes_early_is_no_traceback(math: Path, tmp_path: Path) -> None:
    words = " ".join(TINY)
    done = subprocess.run(
        f"{sys.executable} -m linnet inspect {math.name} {words} | head -n 1",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "math.jsonl\n"
    assert "Traceback" not in done.stderr


# -- parts -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), st.data())
def test_every_example_is_in_one_bin(tokens: list[int], data: st.DataObject) -> None:
    learned = [data.draw(st.integers(0, count)) for count in tokens]
    lengths = lengths_of(np.array(tokens), np.array(learned))
    assert sum(lengths.examples) == sum(lengths.learned) == len(tokens)
    assert len(lengths.edges) == len(lengths.examples) + 1 <= 14
    for index, (start, stop) in enumerate(zip(lengths.edges, lengths.edges[1:], strict=False)):
        inside = sum(start <= count < stop for count in tokens)
        if index == len(lengths.examples) - 1:
            inside = sum(start <= count for count in tokens)
        assert lengths.examples[index] == inside


TOKENIZER = train_bpe(iter(["user: Hi, how are you? assistant: I am fine. " * 20]), vocab_size=300)


@given(st.lists(st.tuples(st.text(st.characters(codec="ascii"), min_size=1), st.booleans(), st.booleans())))
def test_decoded_segments_joined_are_the_text(pieces: list[tuple[str, bool, bool]]) -> None:
    ids, learn = [TOKENIZER.end_of_text], [0]
    for text, learned, ends in pieces:
        own = TOKENIZER.encode(text) + ([TOKENIZER.end_of_text] if ends else [])
        ids += own
        learn += [int(learned)] * len(own)
    segments = decode(TOKENIZER, ids, learn)
    assert "".join(segment.text for segment in segments) == "".join(text for text, _, _ in pieces)
    assert sum(segment.ends for segment in segments) == sum(ends for _, _, ends in pieces)
    learned_text = "".join(text for text, learned, _ in pieces if learned)
    assert "".join(segment.text for segment in segments if segment.learn) == learned_text
