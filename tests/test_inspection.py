"""`linnet inspect`: the figures add up, every kind of file is known, and user text stays text."""

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from linnet import cli
from linnet.inspection import inspect
from linnet.look.counts import lengths_of
from linnet.look.first import decode
from linnet.look.linefacts import judge_lines
from linnet.look.terminal import print_report
from linnet.tokenizer import END_OF_TEXT, train_bpe

TINY = ("model.init_from=scratch", "tokenizer.name=bpe", "tokenizer.vocab_size=300")
PROMISED = [
    "rows",
    "examples",
    "tokens",
    "learned_tokens",
    "kept_share",
    "quarantined",
    "dropped",
    "fill",
    "first",
]
THINGS = ["apples", "pears", "plums", "grapes", "cherries", "lemons", "limes", "figs", "dates", "nuts"]


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(FILE, ...)` runs `linnet inspect` in an empty folder, with an empty cache of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["linnet", "inspect", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, captured.out, captured.err)

    return run


def question(number: int) -> dict[str, str]:
    what = THINGS[number % len(THINGS)]
    asked = f"{number} children have {number + 2} {what} each and eat one of them. How many {what} are left?"
    return {"question": asked, "answer": f"Each has {number + 1} left.\n#### {number * (number + 1)}"}


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


# -- a recipe --------------------------------------------------------------------------------------------------------


def test_the_counts_of_a_recipe_add_up(command: Command, math: Path) -> None:
    done = command("math", f"data.source={math}", "data.max_bad=0.1", "data.validation=0.2", "--json", *TINY)
    assert done.code == 0, done.err
    report = done.report
    assert report.keys() >= set(PROMISED)
    assert report["rows"] + report["quarantined"] + sum(report["dropped"].values()) == 53
    assert report["quarantined"] == sum(report["reasons"].values()) == 2
    assert [bad["place"] for bad in report["quarantine"]] == [f"{math}:51", f"{math}:53"]
    assert report["dropped"].pop("empty line") == 1
    assert set(report["dropped"]) <= {"nearly equal to a held-out row"}
    for key in ("rows", "tokens", "learned_tokens", "bytes"):
        assert report[key] == report["training"][key] + report["validation"][key]
    assert report["validation"]["rows"] > 0
    assert report["kept_share"] == 1.0
    assert sum(report["lengths"]["examples"]) == sum(report["lengths"]["learned"]) == report["examples"]
    assert 0 < report["fill"] <= 1
    real = report["training"]["tokens"] - report["training"]["examples"]  # pairs
    assert report["fill"] == pytest.approx(real / (report["packed_rows"] * report["block_size"]))
    assert "reading" in done.err
    assert "Train" not in done.out


def test_the_first_examples_are_those_of_the_file(command: Command, math: Path) -> None:
    report = command("math", f"data.source={math}", "data.max_bad=0.1", "--json", "--rows", "2", *TINY).report
    assert report["first"] == [
        [[f"user: {row['question']}\nassistant:", False], [f" {row['answer']}", True]]
        for row in (question(1), question(2))
    ]


def test_windows_of_a_long_row_are_shown_one_by_one(command: Command, tmp_path: Path) -> None:
    long = {
        "question": "Tell me all.",
        "answer": " ".join(f"Sentence {number} is here." for number in range(60)),
    }
    path = write_rows(tmp_path / "long.jsonl", [long, question(1)])
    report = command(
        "math", f"data.source={path}", "train.block_size=64", "--json", "--rows", "4", *TINY
    ).report
    assert report["windowed"] == 1
    assert report["examples"] > report["rows"] == 2
    learned = "".join(text for example in report["first"] for text, learn in example if learn)
    assert f" {long['answer']}".startswith(learned)


def test_duplicates_are_found_with_the_row_that_they_repeat(command: Command, math: Path) -> None:
    words = (f"data.source={math}", "data.max_bad=0.1", "data.validation=0")
    duplicates = command("math", *words, "--json", *TINY).report["duplicates"]
    assert (duplicates["exact"], duplicates["near"]) == (1, 1)
    places = [[sample["place"].rpartition(":")[2] for sample in pair] for pair in duplicates["pairs"]]
    assert places == [["49", "4"], ["50", "5"]]


def test_a_strange_row_can_be_dropped_by_its_id(command: Command, math: Path, tmp_path: Path) -> None:
    words = ("math", f"data.source={math}", "data.max_bad=0.1", *TINY)
    report = command(*words, "--json").report
    longest = next(strange for strange in report["strange"] if strange["what"] == "longest")["rows"][0]
    assert longest["place"].startswith(f"{math}:")
    shown = command(*words)
    assert f"echo {longest['id']} >> drop.txt" in shown.out
    (tmp_path / "drop.txt").write_text(longest["id"] + "\n")
    after = command(*words, "data.drop=drop.txt", "--json").report
    assert after["rows"] == report["rows"] - 1
    assert after["dropped"]["listed in data.drop"] == 1
    assert after["dropped_samples"]["listed in data.drop"][0]["id"] == longest["id"]
    assert longest["id"] not in json.dumps(after["strange"])


def test_what_filters_remove_is_shown_with_its_rule(command: Command, math: Path) -> None:
    words = ("math", f"data.source={math}", "data.max_bad=0.1", "data.validation=0", "--json", *TINY)
    keys = ("data.filters.exact_duplicates=true", "data.filters.near_duplicates=0.8")
    report = command(*words, *keys).report
    assert report["dropped"] == {"empty line": 1, "exact_duplicates": 1, "near_duplicates": 1}
    assert report["dropped_samples"]["exact_duplicates"][0]["place"] == f"{math}:49"
    assert report["dropped_samples"]["near_duplicates"][0]["place"] == f"{math}:50"
    assert report["rows"] == 48


def test_what_a_cleaning_rule_cuts_is_shown_before_and_after(command: Command, tmp_path: Path) -> None:
    rows: list[Any] = [question(number) for number in range(30)]
    rows[2] = {
        "question": "What did they say [ 12 ] about birds @xmath0 in spring?",
        "answer": "That they sing.",
    }
    path = write_rows(tmp_path / "cited.jsonl", rows)
    keys = ("data.filters.citations=true", "data.filters.formulas=true", "data.filters.shortest=60")
    report = command("math", f"data.source={path}", "--json", *keys, *TINY).report
    assert report["changed"] == {"citations": 1, "formulas": 1}
    (cited,), (formula,) = (report["changed_samples"][rule] for rule in ("citations", "formulas"))
    assert "say [ 12 ] about" in cited["before"]
    assert "say about birds @xmath0" in cited["after"]
    assert "birds @xmath0 in" in formula["before"]
    assert "[ 12 ] about birds in" in formula["after"]
    assert cited["place"] == f"{path}:3"
    shown = " ".join(command("math", f"data.source={path}", *keys, *TINY).out.split())
    assert "Changed 1 citations" in shown


def test_running_text_is_shown_in_blocks(command: Command, tmp_path: Path) -> None:
    text = "The bird sings a song. A student hears it, and writes it down. " * 60
    (tmp_path / "notes.txt").write_text(text)
    words = ("text", "data.source=notes.txt", "train.block_size=32", "--json", *TINY)
    report = command(*words).report
    assert report["rows"] == 1
    assert report["fill"] == 1.0
    assert report["lengths"] is None
    blocks = ["".join(piece for piece, _ in example) for example in report["first"]]
    assert text.startswith("".join(blocks))
    assert len(blocks) == 3


# -- bare files ------------------------------------------------------------------------------------------------------


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
    assert report["rows"] == 50 - report["dropped"].get("nearly equal to a held-out row", 0)
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


# -- the page and the terminal ---------------------------------------------------------------------------------------


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


# -- real data -------------------------------------------------------------------------------------------------------


def test_gsm8k_as_the_math_recipe_sees_it(command: Command, shared_data: Path) -> None:
    source = shared_data / "math" / "gsm8k_test.jsonl"
    words = ("math", f"data.source={source}", f"model.init_from={shared_data / 'base-30m'}")
    report = command(*words, "--json", "--html", "page.html").report
    assert report["rows"] == report["examples"] == 1319
    assert report["kept_share"] == 1.0
    assert report["fill"] >= 0.97
    assert report["tokens"] == 212_243 or report["tokens"] > 200_000
    with source.open() as file:
        first = json.loads(file.readline())
    assert report["first"][0] == [
        [f"user: {first['question']}\nassistant:", False],
        [f" {first['answer']}", True],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "name", "rows"),
    [
        ("chat", "chat/sgd_dev.jsonl", 2098),
        ("papers", "papers/plos.jsonl", 102),
        ("summaries", "papers/plos.jsonl", 102),
    ],
)
def test_chats_and_papers(command: Command, shared_data: Path, recipe: str, name: str, rows: int) -> None:
    words = (recipe, f"data.source={shared_data / name}", f"model.init_from={shared_data / 'base-30m'}")
    report = command(*words, "--json").report
    assert report["rows"] == rows
    assert report["kept_share"] > (0.99 if recipe != "summaries" else 0.0)
    assert report["fill"] > 0.9


@pytest.mark.slow
def test_novels_are_running_text(command: Command, shared_data: Path) -> None:
    report = command(str(shared_data / "text" / "novels"), "--json").report
    assert report["format"] == "text"
    assert report["rows"] == 20
    assert report["estimated"]
