"""`linnet inspect RECIPE`: the figures add up, and what is shown is what is learned."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Command
from tests.look.rows import TINY, question, write_rows

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


def test_the_counts_of_a_recipe_add_up(command: Command, math: Path) -> None:
    done = command("math", f"data.source={math}", "data.max_bad=0.1", "data.validation=0.2", "--json", *TINY)
    assert done.code == 0, done.err
    report = done.report
    assert report.keys() >= set(PROMISED)
    assert report["rows"] + report["quarantined"] + sum(report["dropped"].values()) == 53
    assert report["quarantined"] == sum(report["reasons"].values()) == 2
    assert [bad["place"] for bad in report["quarantine"]] == [f"{math}:51", f"{math}:53"]
    assert report["dropped"].pop("empty line") == 1
    assert report["dropped"].pop("exact_duplicates") == 1
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
