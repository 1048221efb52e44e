"""Data sets on the hub: the real clients against a hub on this machine.

One new process reads several sources at once, since importing `datasets` takes seconds and its settings are read then.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from linnet.data.reading import hub_files
from linnet.data.reading.hub_files import HubFile
from linnet.data.reading.hub_sets import find_hub_set
from linnet.errors import LinnetError
from tests import hub_repositories as repositories
from tests.loopback_hub import LoopbackHub, run_python

MATH = "hf:ArtifactAI/arxiv-math-instruct-50k"
CHAT = "hf:HuggingFaceH4/ultrachat_200k"
PUBMED, ARXIV = "hf:scientific_papers/pubmed", "hf:scientific_papers/arxiv"
MIRROR = "hf:ccdv/pubmed-summarization"
MOVED = {"scientific_papers": "armanc/scientific_papers"}

READ = """
import dataclasses, json, pickle, sys
from linnet.data.reading.hub_sets import find_hub_set
from linnet.data.rows import Record
from linnet.errors import LinnetError

def read(files, streamed):
    rows, bad, lines, observed = [], [], 0, 0
    def observe(count):
        nonlocal observed
        observed += count
    for file in files:
        if streamed:
            file = dataclasses.replace(file, streamed=True)
        for span in file.spans(size=2000):
            reader = pickle.loads(pickle.dumps(span)).read(observe=observe)
            for record in reader:
                rows.append(record.values) if isinstance(record, Record) else bad.append([record.line, record.reason])
            lines += reader.lines
    return {"rows": rows, "bad": bad, "lines": lines, "observed": observed}

answers = {}
for source in sys.argv[2:]:
    said = []
    try:
        found = find_hub_set(source, say=said.append)
        answers[source] = {
            "name": found.name, "config": found.config, "split": found.split, "held_out": found.held_out_split,
            "revision": found.revision, "took": found.took, "said": said,
            "identity": [file.identity() for file in found.files],
            **read(found.files, sys.argv[1] == "stream"),
            "held_out_rows": read(found.held_out_files, False)["rows"],
        }
    except LinnetError as error:
        answers[source] = {"error": str(error)}
print("ANSWERS" + json.dumps(answers))
"""


def read(
    *sources: str, home: Path, hub: LoopbackHub, mode: str = "download", **env: str
) -> dict[str, dict[str, Any]]:
    """What a new process finds and reads of each source: columns of HubSet and its rows, or an error."""
    done = run_python(READ, mode, *sources, home=home, endpoint=hub.endpoint, **env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert all(answer.get("error", "").count(". ") == 0 for answer in answers.values()), (
        "errors are one sentence"
    )
    return answers


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The four data sets of the recipes."""
    place = tmp_path / "hub"
    repositories.math(place)
    repositories.chat(place)
    repositories.papers(place)
    repositories.papers_mirror(place)
    return place


def test_all_named_sets_are_found_read_and_read_again_without_a_network(tmp_path: Path, root: Path) -> None:
    good = (MATH, CHAT, PUBMED, ARXIV, MIRROR, f"{MIRROR}/document")
    wrong = ("hf:scientific_papers", f"{MIRROR}/missing", f"{MIRROR}@v9", "hf:no/such", "hf:a/b/c/d", "hf:")
    with LoopbackHub(root, moved=MOVED, page=3) as hub:
        first = read(*good, *wrong, home=tmp_path, hub=hub)
        asked = len(hub.requests)
        again = read(*good, home=tmp_path, hub=hub)
        assert len(hub.requests) == asked, "it is all in the cache"
        streamed = read(CHAT, PUBMED, home=tmp_path, hub=hub, mode="stream")
    assert not any(request.startswith("GET") and ".py" in request for request in hub.requests)
    offline = read(*good, "hf:some/other", home=tmp_path, hub=hub)

    math, chat, pubmed, arxiv, mirror, document = (first[source] for source in good)
    assert (math["split"], math["held_out"], math["rows"]) == ("train", "", repositories.math_rows())
    assert (chat["split"], chat["held_out"]) == ("train_sft", "test_sft")
    expected = repositories.chat_rows(seed=0)
    assert chat["rows"] == expected[0::3] + expected[1::3] + expected[2::3]
    assert len(chat["held_out_rows"]) == 15
    expected = repositories.paper_rows(seed=0)
    assert pubmed["rows"] == arxiv["rows"] == expected[0::2] + expected[1::2]
    assert (pubmed["split"], pubmed["held_out"], len(pubmed["held_out_rows"])) == ("train", "validation", 12)
    for words in ("loading script, which is never run", "Parquet branch", "armanc/scientific_papers"):
        assert words in pubmed["took"]
    assert "PART" in arxiv["took"]
    assert "PART" not in pubmed["took"]
    assert (mirror["config"], document["config"]) == ("section", "document")
    assert "\n" in mirror["rows"][0]["article"]
    assert "\n" not in document["rows"][0]["article"]
    for source in good:
        assert first[source]["said"] == [first[source]["took"]]
        assert first[source]["lines"] == 60
        assert offline[source] == again[source] == first[source]
    for source in (CHAT, PUBMED):
        assert streamed[source]["rows"] == first[source]["rows"]
        assert streamed[source]["observed"] == sum(file["bytes"] for file in first[source]["identity"])

    assert (
        "there are arxiv, pubmed: hf:armanc/scientific_papers/arxiv" in first["hf:scientific_papers"]["error"]
    )
    assert "has no config missing; there are document, section" in first[f"{MIRROR}/missing"]["error"]
    assert "no such revision" in first[f"{MIRROR}@v9"]["error"]
    assert "none of that name, or it is private" in first["hf:no/such"]["error"]
    assert "the form is hf:owner/name" in first["hf:a/b/c/d"]["error"]
    assert "the form is hf:owner/name" in first["hf:"]["error"]
    assert "cannot be reached" in offline["hf:some/other"]["error"]


def test_a_script_without_its_branch_is_taken_from_a_mirror_or_refused(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    repositories.papers(root, configs=("arxiv",))
    repositories.papers_mirror(root)
    lone = root / "datasets" / "someone" / "lone"
    lone.mkdir(parents=True)
    (lone / "lone.py").write_text(repositories.SCRIPT)
    pickled = root / "datasets" / "someone" / "pickled"
    pickled.mkdir()
    (pickled / "train.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    other = root / "datasets" / "someone" / "other"
    other.mkdir()
    (other / "train.xml").write_text("<row>text</row>")
    elsewhere = root / "datasets" / "someone" / "elsewhere"
    elsewhere.mkdir()
    card = "configs:\n- config_name: default\n  data_files: hf://datasets/someone/lines/train.txt\n"
    (elsewhere / "README.md").write_text(f"---\n{card}---\n")
    repositories.lines(root)
    script = "hf:armanc/scientific_papers@main"
    sources = (
        PUBMED,
        script,
        "hf:someone/lone",
        "hf:someone/pickled",
        "hf:someone/other",
        "hf:someone/elsewhere",
    )
    with LoopbackHub(root, moved=MOVED) as hub:
        found = read(*sources, home=tmp_path, hub=hub)
    assert found[PUBMED]["name"] == "ccdv/pubmed-summarization"
    for words in ("never run", "has no pubmed", "the mirror ccdv/pubmed-summarization", "config section"):
        assert words in found[PUBMED]["took"]
    assert "leave out @main" in found[script]["error"]
    assert (
        "loading script, which is never run, and the hub has no Parquet branch" in found[sources[2]]["error"]
    )
    for source in sources[3:5]:
        assert "no files of a kind that is read here" in found[source]["error"]
    assert (
        "its card cannot be read (Data files don't belong to someone/elsewhere)" in found[sources[5]]["error"]
    )
    assert not (tmp_path / "ran").exists()


def test_gated_and_private_sets_say_what_to_do(tmp_path: Path, root: Path) -> None:
    with LoopbackHub(root, gated={"HuggingFaceH4/ultrachat_200k": "hf_right"}) as hub:
        without = read(CHAT, home=tmp_path, hub=hub)
        wrong = read(CHAT, home=tmp_path, hub=hub, HF_TOKEN="hf_wrong")
        right = read(CHAT, home=tmp_path, hub=hub, HF_TOKEN="hf_right")
    assert "gated" in without[CHAT]["error"]
    assert "HF_TOKEN or run `hf auth login`" in without[CHAT]["error"]
    assert "your token does not open it" in wrong[CHAT]["error"]
    assert len(right[CHAT]["rows"]) == 60


@pytest.mark.slow
def test_a_new_commit_is_taken_when_the_branch_is_named_and_only_then(tmp_path: Path, root: Path) -> None:
    named = f"{MATH}@main"
    with LoopbackHub(root) as hub:
        first = read(MATH, named, home=tmp_path, hub=hub)
        folder = root / "datasets" / "ArtifactAI" / "arxiv-math-instruct-50k"
        (folder / "README.md").write_text("# Another card\n")
        second = read(MATH, named, home=tmp_path, hub=hub)
        repositories.math(root, count=70)
        third = read(named, home=tmp_path, hub=hub)
    offline = read(named, home=tmp_path, hub=hub)
    assert second[MATH] == first[MATH]
    assert second[named]["revision"] != first[named]["revision"]
    assert second[named]["identity"] == first[named]["identity"], "prepared data still fits"
    assert len(third[named]["rows"]) == len(offline[named]["rows"]) == 70
    assert third[named]["identity"] != first[named]["identity"]
    assert offline[named]["said"][0].endswith("(the hub cannot be reached: as it was known here)")


@pytest.mark.slow
def test_a_hub_in_trouble(tmp_path: Path, root: Path) -> None:
    """An error that passes, files that are cut in the middle, and HF_HUB_OFFLINE."""
    with LoopbackHub(root) as hub:
        hub.fail("/storage/", "cut")
        hub.fail("/storage/", 503)
        found = read(CHAT, home=tmp_path, hub=hub)
        (tmp_path / "second").mkdir()
        hub.fail("/storage/", "cut")
        streamed = read(CHAT, home=tmp_path / "second", hub=hub, mode="stream")
        (tmp_path / "third").mkdir()
        hub.fail("/api/datasets/", 503, times=3)
        down = read(CHAT, home=tmp_path / "third", hub=hub)
        asked = len(hub.requests)
        unset = read(CHAT, MATH, home=tmp_path, hub=hub, HF_HUB_OFFLINE="1")
        assert len(hub.requests) == asked
    assert len(found[CHAT]["rows"]) == len(streamed[CHAT]["rows"]) == 60
    assert unset[CHAT]["rows"] == found[CHAT]["rows"]
    assert "HF_HUB_OFFLINE is set" in unset[MATH]["error"]
    assert "status 503; try again later" in down[CHAT]["error"]


@pytest.mark.slow
def test_a_bad_line_costs_a_row_not_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "someone" / "dirty"
    rows = repositories.math_rows()
    repositories.write_jsonl(folder / "train.jsonl", rows)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"question": "half a li\n\n[1]\n{"question": "q", "answer": "a"}\n')
    table = tmp_path / "hub" / "datasets" / "someone" / "table"
    table.mkdir()
    (table / "train.csv").write_text("question;answer\nWhat?;That.\n")
    card = "configs:\n- config_name: default\n  data_files: train.csv\n  sep: ;\n"
    (table / "README.md").write_text(f"---\n{card}---\n")
    (tmp_path / "hub" / "datasets" / "someone" / "array").mkdir()
    (tmp_path / "hub" / "datasets" / "someone" / "array" / "train.json").write_text(json.dumps(rows))
    source, csv, array = "hf:someone/dirty", "hf:someone/table", "hf:someone/array"
    with LoopbackHub(tmp_path / "hub") as hub:
        streamed = read(source, csv, array, home=tmp_path, hub=hub, mode="stream")
        found = read(source, csv, array, home=tmp_path, hub=hub)
    assert [line for line, _ in streamed[source]["bad"]] == [61, 63]
    assert len(found[source]["bad"]) == 2
    for answer in (found, streamed):
        assert answer[source]["rows"] == [*rows, {"question": "q", "answer": "a"}]
        assert answer[source]["lines"] == 64
        assert answer[csv]["rows"] == [{"question": "What?", "answer": "That."}], "the card's separator"
        assert answer[array]["rows"] == rows


def test_large_splits_are_streamed_and_with_max_rows_all_but_small_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No network: what was found is given."""
    small, medium, large = (
        HubFile("o/n", "0" * 40, f"{size}.parquet", size, "c", "parquet")
        for size in (1 << 20, 1 << 28, 1 << 30)
    )

    def how(*files: HubFile, max_rows: int | None = None) -> list[bool]:
        from linnet.data.reading.hub_sets import _how

        return [file.streamed for file in _how(files, max_rows=max_rows)]

    assert how(small, medium) == [False, False]
    assert how(small, medium, large) == [True, True, True]
    assert how(small, medium, max_rows=100) == [False, True]
    assert how(small, max_rows=100) == [False]
    assert hub_files.LARGE == 1 << 30


@pytest.mark.parametrize("source", ["hf:../../etc", "hf:owner/na me", "hf:owner/name@", "hf:owner//x"])
def test_what_is_no_name_is_refused_before_anything_is_asked(source: str) -> None:
    with pytest.raises(LinnetError, match="the form is hf:owner/name"):
        find_hub_set(source, say=lambda text: None)
