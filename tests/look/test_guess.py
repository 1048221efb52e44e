"""`linnet inspect FILE`: every kind of file is known, and what is wrong with it is said."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from linnet.look.linefacts import judge_lines
from linnet.tokenizer import END_OF_TEXT
from tests.commands import Command
from tests.look.rows import TINY, question, write_rows

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, you."}]}
PAPER = {"title": "Sleep", "abstract": "We slept.", "article": "Introduction\nSleep is good. " * 9}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("rows.jsonl", question(1), "instruct"),
        ("rows.json", question(1), "instruct"),
        ("rows.csv", question(1), "instruct"),
        ("rows.tsv", {"prompt": "Say it", "completion": "It."}, "instruct"),
        ("rows.parquet", {"problem": "Say it", "solution": "It.", "n": 3}, "instruct"),
        ("rows.jsonl.gz", question(1), "instruct"),
        ("rows.jsonl", CHAT, "chat"),
        (
            "rows.jsonl",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            "chat",
        ),
        ("rows.jsonl", PAPER, "papers"),
        ("rows.jsonl", {"text": "A short text."}, "lines"),
        ("rows.jsonl", {"text": "A long text. " * 300}, "text"),
    ],
)
def test_a_bare_file_is_known(
    command: Command, tmp_path: Path, name: str, row: dict[str, Any], expected: str
) -> None:
    rows = [row] * 6
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith((".csv", ".tsv")):
        mark = "," if name.endswith(".csv") else "\t"
        lines = [mark.join(row)] + [mark.join('"' + value + '"' for value in row.values())] * 6
        path.write_text("\n".join(lines) + "\n")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        write_rows(path, rows)
    done = command(name, "--json")
    assert done.code == 0, done.err
    report = done.report
    assert report["guess"]["format"] == report["format"] == expected
    assert {column["name"] for column in report["guess"]["columns"]} == set(row)
    assert report["rows"] == 6
    assert report["command"].startswith("linnet train ")
    assert report["command"].endswith(f" data.source={name}")
    assert report["duplicates"]["exact"] == 5
    assert report["estimated"] == ["tokens", "learned_tokens"]
    assert report["fill"] is None
    text = command(name)
    assert text.code == 0
    assert "estimated as bytes / 4" in " ".join(text.out.split())
    assert {path.name for path in tmp_path.iterdir()} <= {name, "cache"}, "nothing is left behind"


def test_a_bare_file_with_a_tokenizer_is_measured(command: Command, math: Path, tmp_path: Path) -> None:
    report = command("math.jsonl", "--json", *TINY).report
    assert report["fill"] > 0
    assert report["estimated"] == []
    near = report["dropped"].get("nearly equal to a held-out row", 0)
    assert report["rows"] == 50 - report["dropped"]["exact_duplicates"] - near
    assert report["quarantined"] == 2
    assert any("More than 1% of the rows cannot be used" in note for note in report["notes"])
    assert [path.name for path in tmp_path.iterdir()] == ["math.jsonl"], "nothing is left behind"


def test_the_cached_tokenizer_is_taken(
    command: Command, math: Path, tmp_path: Path, shared_data: Path
) -> None:
    place = tmp_path / "cache" / "models--gpt2"
    shutil.copytree(shared_data / "gpt2-tokenizer", place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    report = command("math.jsonl", "--json").report
    assert report["estimated"] == []
    assert report["missing"] == ""
    assert report["tokens"] > report["learned_tokens"] > 0


PROSE = (
    "It was the best of times, it was the\nworst of times, it was the age\nof wisdom.\n\nIt was spring.\n"
    * 20
)
VERSE = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n" * 20
PARAGRAPHS = ("A paragraph of one long line. " * 20 + "\n\n") * 20


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("A first joke.\nAnother one, longer.\nA third!\n" * 20, True),
        ("Alone between blank lines.\n\nSo is this.\n\n" * 20, True),
        ("\ufeffWindows line ends.\r\nAre no matter.\r\n" * 20, True),
        (PROSE, False),
        (VERSE, False),
        (PARAGRAPHS, False),
        ("One line only, and a long one. " * 200, False),
    ],
)
def test_running_text_or_one_example_a_line(command: Command, tmp_path: Path, text: str, lines: bool) -> None:
    (tmp_path / "data.txt").write_text(text)
    report = command("data.txt", "--json").report
    assert report["format"] == ("lines" if lines else "text")
    other = "text" if lines else "lines"
    assert report["guess"]["otherwise"].endswith(f"linnet train {other} data.source=data.txt")
    assert report["guess"]["why"]


def test_judge_lines_needs_lines() -> None:
    assert judge_lines("a\nb\n") == (
        False,
        "It has 2 lines, too few for examples of their own: it is taken as running text.",
    )


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "cp1251"])
def test_another_encoding_is_named_with_what_mends_it(
    command: Command, tmp_path: Path, encoding: str
) -> None:
    text = (
        "Das schöne Mädchen hört süße Töne.\n" if encoding != "cp1251" else "Привет, как твои дела сегодня?\n"
    )
    (tmp_path / "data.txt").write_bytes((text * 30).encode(encoding))
    done = command("data.txt", "--json")
    assert done.code == 0
    guess = done.report["guess"]
    assert guess["format"] is None
    convert = re.search(r"iconv -f \S+ -t UTF-8 .*", guess["remedy"])
    assert convert, guess["remedy"]
    assert "iconv -f" in command("data.txt").out
    if shutil.which("iconv"):
        subprocess.run(convert[0], shell=True, check=True)
        assert (tmp_path / "data.utf8.txt").read_text(encoding="utf-8-sig") == text * 30
        assert command("data.utf8.txt", "--json").report["format"] == "lines"


def test_json_lines_named_txt_are_noticed(command: Command, tmp_path: Path) -> None:
    write_rows(tmp_path / "data.txt", [question(1)] * 4)
    assert "mv data.txt data.jsonl" in command("data.txt").out


def test_columns_that_nobody_knows_are_listed_with_the_line_to_write(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "odd.csv").write_text("left,right\n1,2\n3,4\n")
    done = command("odd.csv", "--json")
    assert done.code == 0
    assert "left, right" in done.report["guess"]["why"]
    assert "data.columns.question=NAME" in done.report["guess"]["why"]
    keys = ("data.format=instruct", "data.columns.question=left", "data.columns.answer=right")
    assert command("odd.csv", *keys, "--json").report["rows"] == 2


def test_a_folder_and_a_mark_of_another_program(command: Command, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(
            f"Line one.\nLine two.<|endoftext|>\nLine three of {name}.\nFour.\n"
        )
    report = command("texts", "--json").report
    assert len(report["sources"]) == 2
    assert report["rows"] == 8
    assert any(note.startswith(END_OF_TEXT) for note in report["notes"])


def test_files_of_a_folder_that_are_not_alike_are_told(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(30):
        write_rows(folder / f"q{number:02}.jsonl", [question(number)] * 3)
    assert not any("alike" in note for note in command("mixed", "--json").report["notes"])

    (folder / "zz.csv").write_text("question,answer\na,b\n")
    (folder / "zzz.md").write_text("This is not data. It says what is.\n" * 5)
    (folder / "zzzz.txt").write_bytes(b"caf\xe9 " * 50)
    [told] = [note for note in command("mixed", "--json").report["notes"] if "alike" in note]
    assert told == (
        "Not all files are alike (of 33 files 21 were looked at): q00.jsonl, which is judged here, is JSON lines for "
        "data.format=instruct, but zz.csv: a table with commas (CSV) for data.format=instruct; zzz.md: plain text for "
        "data.format=lines; name those that belong together by a glob, such as '*.jsonl'."
    )

    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for number in range(30):  # what comes first has no format, so nothing more is read
        write_rows(folder / f"q{number:02}.jsonl", [{"left": 1}] if number == 0 else [{"messages": talk}])
    [told] = [note for note in command("mixed", "--json").report["notes"] if "alike" in note]
    assert (
        "is JSON lines that fits no format, but q01.jsonl and 17 more: JSON lines for data.format=chat"
        in told
    )


def test_columns_that_fit_and_rows_that_do_not(command: Command, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}]}] * 5
    write_rows(tmp_path / "chat.jsonl", rows)
    why = command("chat.jsonl", "--json").report["guess"]["why"]
    assert "data.format=chat fits the columns, but not the rows: no assistant turn" in why


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("nothing.txt",), 1, "There is no nothing.txt"),
        (("mth",), 2, "There is no recipe and no file named mth"),
        (("empty.txt",), 1, "empty.txt is empty"),
        (("hf:a/b",), 2, "say as what it is to be read"),
        (("data.txt", "data.source=other.txt"), 2, "leave data.source out"),
        (("data.txt", "--rows", "-1"), 2, "must be 0 or more"),
        (("data.txt", "data.fromat=lines"), 2, "did you mean data.format?"),
        (("math", "data.source=data.txt", "model.init_from=scratch"), 1, "data.columns.question=NAME"),
        (("data.txt", "--html", "nowhere/page.html"), 1, "nowhere"),
    ],
)
def test_wrong_input_gets_one_sentence(
    command: Command, tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "data.txt").write_text("One.\nTwo.\nThree.\nFour.\n")
    done = command(*words)
    assert done.code == code, done.err
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
