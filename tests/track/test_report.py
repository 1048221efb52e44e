"""report.html and the page of several runs: what they say, what they survive, and how they behave in a browser."""

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import linnet
from linnet import files
from linnet.errors import LinnetError
from linnet.files import Lock, operations
from linnet.overview import show
from linnet.track.metrics import Row, RowFile
from linnet.track.report import LiveReport, write_report
from linnet.track.report.curves import run_figures
from linnet.track.runs import load_run
from tests.browser import Browser, chromium, needs_chromium

HOSTILE = "</script><img src=x onerror=\"document.title='caught'\"><!--\u2028 & \x1b[2J <b>bold</b>"

COUNTS = {"rows": 90, "examples": 95, "tokens": 12_345, "learned_tokens": 9_876, "bytes": 54_321}
ENVIRONMENT = {
    "parent": {"init_from": "scratch"},
    "data": {
        "folder": "prepared/x",
        "format": "lines",
        "vocab_size": 2048,
        "sources": [{"path": "notes.txt", "bytes": 99}],
        "counts": COUNTS,
        "held_out_counts": {**COUNTS, "rows": 7},
        "dropped": {"too short": 3},
        "changed": {},
        "quarantined": 4,
        "fingerprint": "f" * 64,
    },
    "starts": [
        {
            "step": 0,
            "time": "2026-01-02T03:04:05+0000",
            "command": "linnet train text",
            "machine": {"cpu": "Abacus 3", "threads": 2, "memory_free_bytes": 5_000_000_000},
            "choices": {"steps": {"value": 40, "reason": "asked for"}},
            "changes": [],
        },
        {
            "step": 20,
            "time": "2026-01-03T03:04:05+0000",
            "command": "linnet train text train.steps=60",
            "machine": {"cpu": "Abacus 4", "threads": 2, "memory_free_bytes": 6_000_000_000},
            "choices": {"steps": {"value": 60, "reason": "asked for"}},
            "changes": [{"key": "train.steps", "old": 40, "new": 60}],
        },
    ],
}


def rows_of(steps: int, *, every: int = 10) -> list[Row]:
    rows: list[Row] = [{"step": 0, "time_s": 0.0, "validation_loss": 0.5}]
    for step in range(1, steps + 1):
        rows.append(
            {
                "step": step,
                "time_s": step * 10.0,
                "loss": 2.0 + 8.0 / step,
                "learning_rate": 1e-3 / step,
                "grad_norm": 1.0,
                "tokens": 512 * step,
                "learned_tokens": 500 * step,
                "tokens_per_s": 51.2,
                "memory_gb": 1.5,
            }
        )
        if step % every == 0:
            rows.append({"step": step, "time_s": step * 10.0, "validation_loss": 3.0 + abs(step - 20)})
    return rows


def make_run(folder: Path, *, steps: int = 60, text: str = HOSTILE) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('name = "text"\n[train]\nsteps = 60\n# <recipe>\n')
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    with RowFile(folder / "metrics.jsonl") as file:
        for row in rows_of(steps):
            file.append(row)
    with RowFile(folder / "samples.jsonl") as file:
        for step in range(0, steps + 1, 10):
            file.append({"step": step, "prompt": "Once", "text": f" sample {step}{text}"})
    return folder


def page_of(folder: Path) -> str:
    """The page but for plotly's JavaScript."""
    write_report(folder)
    return without_bundle((folder / "report.html").read_text())


def without_bundle(page: str) -> str:
    return re.sub(r"<script>\s*/\*\*.*?</script>", "<script>plotly</script>", page, flags=re.DOTALL)


def figures_in(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def numbers(encoded: Mapping[str, str]) -> list[float]:
    return np.frombuffer(base64.b64decode(encoded["bdata"]), dtype="<f8").tolist()


def test_the_page_holds_all_that_the_folder_tells(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "mine"))
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for expected in (
        *("mine", "finished", "recipe text, from scratch", "2026-01-02 03:04", "of 60"),
        *("3.000", "at step 20", "30.7k", "10 min 00 s", "51"),
        *("12,345", "9,876", "too short", "quarantined", "notes.txt", "vocabulary"),
        *("Abacus 4", "5.0 GB".replace("5", "6"), "asked for", "linnet train text train.steps=60"),
        *("train.steps: 40 → 60", "cpu: Abacus 3 → Abacus 4", "# <recipe>", "sample 60"),
    ):
        assert expected in text, expected
    assert "memory_free_bytes" not in text


def test_the_page_does_not_tell_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is mostly the user's, and a page is sent to others. Another folder with that beginning stays."""
    monkeypatch.setenv("HOME", "/home/al")
    monkeypatch.setenv("USERPROFILE", "/home/al")
    folder = make_run(tmp_path / "mine")
    environment = json.loads(json.dumps(ENVIRONMENT).replace("notes.txt", "/home/al/notes.txt"))
    environment["data"]["folder"] = "/home/alice/prepared"
    environment["starts"][0]["command"] = "linnet train text data.source=/home/al/notes.txt"
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "recipe.toml").write_text('name = "x"\n[model]\ninit_from = "/home/al/runs/a"\n')
    page = page_of(folder)
    show(tmp_path, html=tmp_path / "all.html")
    both = page + (tmp_path / "all.html").read_text()
    assert "/home/al/" not in without_bundle(both)
    assert "~/notes.txt" in page
    assert "data.source=~/notes.txt" in page
    assert "/home/alice/prepared" in page
    assert "~/runs/a" in (tmp_path / "all.html").read_text()


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "mine"))
    assert "<img" not in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert html.escape("<img src=x") in page
    assert page.count("</script>") == 3


def test_the_policy_allows_the_two_scripts_and_nothing_from_outside(tmp_path: Path) -> None:
    write_report(make_run(tmp_path / "mine", text=""))
    page = (tmp_path / "mine" / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none';")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy[1]
    assert len(scripts) == 2
    assert "src=" not in without_bundle(page)
    assert "href=" not in without_bundle(page)


def test_curves_have_the_numbers_of_the_rows_on_three_axes() -> None:
    document = run_figures(rows_of(60))
    assert [axis["title"] for axis in document["axes"]] == ["training step", "tokens", "training time (min)"]
    figures = {figure["id"]: figure for figure in document["figures"]}
    assert list(figures) == ["loss", "learning_rate", "grad_norm", "tokens_per_s", "memory_gb"]
    loss = figures["loss"]
    names = [trace["name"] for trace in loss["data"]]
    assert names == ["each step", "training, moving mean", "held out", "best: 3.000 at step 20"]
    assert numbers(loss["data"][0]["y"]) == [2.0 + 8.0 / step for step in range(1, 61)]
    assert numbers(loss["x"]["step"][0]) == list(range(1, 61))
    assert numbers(loss["x"]["tokens"][0]) == [512.0 * step for step in range(1, 61)]
    assert numbers(loss["x"]["time"][0]) == pytest.approx([step / 6 for step in range(1, 61)])
    assert numbers(loss["x"]["tokens"][2]) == [512.0 * step for step in range(0, 61, 10)]
    assert (numbers(loss["x"]["step"][3]), numbers(loss["data"][3]["y"])) == ([20.0], [3.0])


def test_numbers_that_are_not_finite_leave_gaps() -> None:
    rows = rows_of(60)
    for row in rows:
        if row["step"] in (5, 30, 31):
            row |= {"loss": float("nan"), "grad_norm": float("inf")} if "loss" in row else {}
    losses, mean = (numbers(trace["y"]) for trace in run_figures(rows)["figures"][0]["data"][:2])
    assert [index + 1 for index, value in enumerate(losses) if np.isnan(value)] == [5, 30]
    norms = run_figures(rows)["figures"][2]["data"][0]
    assert not np.isinf(numbers(norms["y"])).any()
    assert np.isnan(mean[4])
    assert np.isfinite(mean[5])
    all_bad = [{**row, "loss": float("nan")} for row in rows if "loss" in row]
    assert "loss" not in [figure["id"] for figure in run_figures(all_bad)["figures"]]


def test_a_hundred_thousand_rows_become_few_points_with_their_spikes() -> None:
    rows: list[Row] = [{"step": step, "loss": 2.0} for step in range(1, 100_001)]
    rows[70_000]["loss"] = 9.0
    rows[80_000]["loss"] = float("nan")
    trace = run_figures(rows)["figures"][0]["data"][0]
    drawn = numbers(trace["y"])
    assert len(drawn) <= 2_010
    assert 9.0 in drawn
    assert sum(map(np.isnan, drawn)) == 1


def test_a_run_without_a_row_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=0)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    page = page_of(folder)
    assert "No step is logged yet" in page
    assert "Abacus 4" in page


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("recipe.toml", b"\xff\xfe", "recipe.toml cannot be read"),
        ("recipe.toml", b"name = 3\n[model]\ninit_from = 4\n", None),
        ("environment.json", b"{", "environment.json cannot be read"),
        ("environment.json", b"[1]", "environment.json"),
        ("environment.json", b'{"data": 3, "starts": 4}', "environment.json: data cannot be shown"),
        ("environment.json", b'{"data": {"counts": []}, "starts": [{}]}', "environment.json: machine"),
        ("environment.json", json.dumps({**ENVIRONMENT, "starts": [None]}).encode(), "environment.json"),
        ("metrics.jsonl", b'{"step": 1, "loss": 2.5}\nrubbish\n', "metrics.jsonl:2"),
        ("metrics.jsonl", b'{"step": 1, "loss": "x", "tokens": [1]}\n{"step": 2, "loss": 1e999}\n', None),
        ("metrics.jsonl", b'{"step": 1, "loss": [1], "validation_loss": [1]}\n', None),
        ("metrics.jsonl", b'{"step": 1, "loss": 1' + b"0" * 400 + b"}\n", None),
        (
            "samples.jsonl",
            b'rubbish\n{"step": 1, "prompt": 3}\n{"step": 1, "prompt": "a", "text": "b"}\n',
            "1:",
        ),
        ("samples.jsonl", b'{"step": 1, "prompt": "\\ud800", "text": "\\ud800"}\n', None),
    ],
)
def test_damaged_files_cost_their_part_of_the_page(
    tmp_path: Path, file: str, content: bytes, said: str | None
) -> None:
    folder = make_run(tmp_path / "mine")
    (folder / file).write_bytes(content)
    page = page_of(folder)
    assert page.endswith("</html>")
    assert ('class="problems"' in page) == (said is not None)
    assert said is None or said in html.unescape(page)


@pytest.mark.parametrize("file", ["recipe.toml", "environment.json", "metrics.jsonl", "samples.jsonl"])
def test_missing_files_cost_their_part_of_the_page(tmp_path: Path, file: str) -> None:
    folder = make_run(tmp_path / "mine")
    (folder / file).unlink()
    assert "mine" in page_of(folder)


def test_many_evaluations_are_shown_in_part(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    with RowFile(folder / "samples.jsonl") as file:
        for step in range(70, 3_000, 10):
            file.append({"step": step, "prompt": "", "text": f"text {step}" * 2_000})
    page = page_of(folder)
    assert "60 of 300 evaluations" in page
    assert page.count('class="evaluation"') == 60
    for step in ("step 0<", "step 2,990<"):
        assert step in page
    assert len(page) < 1_000_000


def test_a_live_report_takes_one_percent_of_the_time(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=40)
    now = [100.0]

    def clock() -> float:
        now[0] += 0.25  # so long takes a redraw
        return now[0]

    live = LiveReport(folder, clock=clock)
    live.offer()
    page = folder / "report.html"
    assert ">running<" in page.read_text()
    page.unlink()
    live.offer()
    now[0] += 23.0
    live.offer()
    assert not page.exists()
    now[0] += 2.0
    live.offer()
    assert page.exists()


def test_at_the_end_it_is_drawn_and_knows_that_it_has_ended(tmp_path: Path) -> None:
    """The training still holds its lock then."""
    for name, steps, state in (("a", 40, "stopped"), ("b", 60, "finished")):
        folder = make_run(tmp_path / name, steps=steps)
        with Lock(folder / "lock"):
            live = LiveReport(folder)
            live.offer()
            live.close()
            assert f">{state}<" in (folder / "report.html").read_text()
            write_report(folder)
            assert ">running<" in (folder / "report.html").read_text()


def test_a_redraw_waits_for_no_disk_and_leaves_the_old_page_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "mine")

    def fail(*_: object) -> None:
        raise OSError(5, "not now")

    for name in ("fsync", "sync"):
        monkeypatch.setattr(operations, name, fail)
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    monkeypatch.setattr(operations, "rename", fail)
    with pytest.raises(LinnetError, match=r"report\.html"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {
        *("recipe.toml", "environment.json", "metrics.jsonl", "samples.jsonl", "report.html")
    }


def test_ten_thousand_rows_are_drawn_quickly(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=10_000)
    live = LiveReport(folder)
    live.offer()
    started = time.process_time()  # of this process: the machine has other work, too
    live.close()
    assert time.process_time() - started < 0.5  # 0.1 s where the machine is idle


def test_several_runs_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a<!--<script &b")
    make_run(tmp_path / "run-2", steps=40)
    show(tmp_path, html=tmp_path / "all.html", as_json=True)
    out, err = capsys.readouterr()
    assert [run["name"] for run in json.loads(out)["runs"]] == ["a<!--<script &b", "run-2"]
    assert "all.html" in err
    page = without_bundle((tmp_path / "all.html").read_text())
    assert "href=" not in page
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    assert cells[: len(cells) // 2][:2] == ["a<!--<script &b", "text"]
    for cell in ("finished", "stopped", "3.000", "10:00", "51"):
        assert cell in cells
    assert "at step 60" in page
    assert "at step 40" in page
    loss = figures_in(page)["figures"][0]
    assert [trace["name"] for trace in loss["data"] if trace.get("showlegend", True)] == [
        "a&lt;!--&lt;script &amp;b",
        "run-2",
    ]


def test_an_answer_stands_apart_from_its_question_on_the_page_of_runs_too(tmp_path: Path) -> None:
    for name in ("lines", "chat"):
        folder = make_run(tmp_path / name, text="its text")
        environment = {**ENVIRONMENT, "data": {"format": name}}
        (folder / "environment.json").write_text(json.dumps(environment))
    show(tmp_path, html=tmp_path / "all.html")
    pages = {"one": (tmp_path / "all.html").read_text()}
    pages = {name: page_of(tmp_path / name) for name in ("lines", "chat")} | pages
    assert {name: "</span><br>" in page for name, page in pages.items()} == {
        "lines": False, "chat": True, "one": True,
    }  # fmt: skip


def test_a_page_of_runs_that_cannot_be_is_an_error_in_words(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    with pytest.raises(LinnetError, match=r"no folder .*nowhere"):
        show(tmp_path / "runs", html=tmp_path / "nowhere" / "all.html")
    with pytest.raises(LinnetError, match=r"is a folder; name a file, such as .*runs\.html"):
        show(tmp_path / "runs", html=tmp_path)
    with pytest.raises(LinnetError, match="no folder"):
        show(tmp_path / "missing", html=tmp_path / "all.html")


def test_the_summary_of_a_training_in_this_process(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=40)
    with Lock(folder / "lock"):
        assert [load_run(folder, running=value)[0].state for value in (None, True, False)] == [
            *("running", "running", "stopped"),
        ]


@pytest.mark.parametrize("in_the_way", [False, True])
def test_a_training_draws_its_page_and_does_without_where_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_the_way: bool
) -> None:
    (tmp_path / "text.txt").write_text("the bird sings a song that it has heard. " * 200)
    page = tmp_path / "a run" / "report.html"
    if in_the_way:
        page.mkdir(parents=True)
    run = linnet.train(
        "text",
        run=tmp_path / "a run",
        data={"source": str(tmp_path / "text.txt"), "prepared": str(tmp_path / "prepared")},
        tokenizer={"name": "char"},
        model={"init_from": "scratch", "n_layer": 1, "n_embd": 16, "n_head": 1, "n_positions": 16},
        train={"steps": 4, "eval_every": 1, "block_size": 16, "batch_size": 2},
        sample={"prompts": ["the "], "max_new_tokens": 2},
    )
    assert len([row for row in run.metrics() if "loss" in row]) == 4
    shown, said = capsys.readouterr()
    assert f"Next: linnet generate '{run.dir}' \"...\"" in shown, "a space is quoted"
    if in_the_way:
        assert said.count("report.html cannot be written, the training goes on") == 1
        return
    assert "report.html" not in said
    (start,) = json.loads((tmp_path / "a run" / "environment.json").read_bytes())["starts"]
    assert not Path(start["command"].split()[0]).is_absolute(), "that page tells no folder of this machine"
    text = without_bundle(page.read_text())
    assert ">finished<" in text
    assert "step 4<" in text
    assert 'class="problems"' not in text


def test_the_same_command_redraws_a_page_that_a_kill_or_a_full_disk_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the bird sings a song that it has heard. " * 200)
    again: dict[str, Any] = {
        "data": {"source": "text.txt"},
        "tokenizer": {"name": "char"},
        "model": {"init_from": "scratch", "n_layer": 1, "n_embd": 16, "n_head": 1, "n_positions": 16},
        "train": {"steps": 2, "block_size": 16, "batch_size": 2},
        "sample": {"max_new_tokens": 0},
    }
    page, card = Path("runs/text/report.html"), Path("runs/text/model/README.md")
    with monkeypatch.context() as context:
        context.setattr(LiveReport, "close", lambda self: files.write_file(page / "x", [b""]))
        linnet.train("text", **again)
    said = capsys.readouterr().err
    assert "report.html cannot be written: " in said, "the training does not go on: it has ended"
    assert ">running<" in page.read_text()
    card.unlink()
    linnet.train("text", **again)
    assert ">finished<" in page.read_text()
    assert card.is_file()
    page.unlink()
    page.mkdir()
    linnet.train("text", **again)
    assert "report.html cannot be written: " in capsys.readouterr().err


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "mine")
    write_report(folder)
    return folder / "report.html"


GRAPH = "document.getElementById('figure-loss')"


@needs_chromium
def test_the_page_draws_without_asking_anybody(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.requests[1:] == []
    assert browser.complaints == []
    assert browser.run("document.title") == "mine: finished"  # no sample's script has run
    assert browser.run("document.querySelectorAll('.js-plotly-plot .main-svg').length") >= 10
    assert browser.run(f"{GRAPH}.querySelectorAll('.scatterlayer .trace').length") == 4
    assert browser.run(f"{GRAPH}.calcdata[0].length") == 60
    assert "sample 60</script>" in browser.run(
        "document.querySelector('.evaluation:not([hidden])').innerText"
    )


@needs_chromium
def test_no_button_sends_anything_away(browser: Browser, report: Path) -> None:
    browser.open(report)
    titles = browser.run("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert {title.split()[0] for title in titles} == {"Download", "Zoom", "Pan", "Reset"}
    assert browser.run("document.querySelectorAll('a').length") == 0


@needs_chromium
def test_the_axis_is_chosen_for_all_figures(browser: Browser, report: Path) -> None:
    browser.open(report)
    last = f"{GRAPH}.calcdata[0][59].x"
    titles = "[...document.querySelectorAll('.xtitle')].map(t => t.textContent)"
    assert browser.run(last) == 60
    for place, title, end in (
        (1, "tokens", 512 * 60),
        (2, "training time (min)", 10),
        (0, "training step", 60),
    ):
        browser.run(f"document.querySelectorAll('.axes input')[{place}].click()")
        assert browser.run(last) == end
        assert browser.run(titles) == [title] * 5


@needs_chromium
def test_a_drag_zooms_and_a_double_click_goes_back(browser: Browser, report: Path) -> None:
    browser.open(report)
    whole = browser.run(f"{GRAPH}._fullLayout.xaxis.range")
    box = browser.run(f"{GRAPH}.querySelector('.nsewdrag').getBoundingClientRect().toJSON()")
    middle = box["y"] + box["height"] / 2

    def mouse(kind: str, share: float, clicks: int = 1) -> None:
        place = {"x": box["x"] + share * box["width"], "y": middle}
        browser.call(
            "Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=clicks, **place
        )

    mouse("mousePressed", 0.25)
    mouse("mouseMoved", 0.4)
    mouse("mouseMoved", 0.5)
    mouse("mouseReleased", 0.5)
    moved = f"{GRAPH}._fullLayout.xaxis.range[0] > {whole[0]}"
    zoomed = browser.run(
        f"new Promise(r => {{ const wait = setInterval(() => {{ if ({moved}) {{ clearInterval(wait); "
        f"r({GRAPH}._fullLayout.xaxis.range) }} }}, 50) }})"
    )
    assert whole[0] < zoomed[0] < zoomed[1] < whole[1]
    assert zoomed[0] == pytest.approx(whole[0] + 0.25 * (whole[1] - whole[0]), abs=1)
    for _ in range(10):  # two clicks count as one double click within 300 ms, which a busy machine may miss
        for clicks in (1, 2):
            mouse("mousePressed", 0.5, clicks)
            mouse("mouseReleased", 0.5, clicks)
        now = browser.run(f"new Promise(r => setTimeout(() => r({GRAPH}._fullLayout.xaxis.range), 600))")
        if now == whole:
            break
    assert now == whole


@needs_chromium
def test_samples_slide_from_first_to_last(browser: Browser, report: Path) -> None:
    browser.open(report)
    shown = "[...document.querySelectorAll('.evaluation:not([hidden])')].map(e => e.innerText)"
    slider = "document.querySelector('.slider input')"
    for value, step in (("0", 0), ("3", 30), ("6", 60)):
        browser.run(f"{slider}.value = '{value}', {slider}.dispatchEvent(new Event('input'))")
        (text,) = browser.run(shown)
        assert f"sample {step}</script>" in text
        assert browser.run("document.querySelector('output').value") == f"step {step}"


@needs_chromium
def test_light_dark_phone_and_paper(browser: Browser, report: Path) -> None:
    grounds, inks = set(), set()
    for dark in (False, True):
        browser.open(report, width=390, dark=dark, phone=True)
        grounds.add(browser.run("getComputedStyle(document.body).backgroundColor"))
        inks.add(browser.run(f"getComputedStyle({GRAPH}.querySelector('.legendtext')).fill"))
        assert browser.run("document.documentElement.scrollWidth") == 390
    assert len(grounds) == len(inks) == 2
    browser.open(report, dark=True)
    assert browser.pdf().startswith(b"%PDF")
    assert browser.run("document.querySelector('details').open")
    assert not browser.run("document.documentElement.classList.contains('printing')")


@needs_chromium
def test_a_page_of_runs_draws_without_asking_anybody(browser: Browser, tmp_path: Path) -> None:
    make_run(tmp_path / "a<!--<script &b")
    make_run(tmp_path / "run-2", steps=40)
    show(tmp_path, html=tmp_path / "all.html", as_json=True)
    browser.open(tmp_path / "all.html")
    assert browser.requests[1:] == []
    assert browser.complaints == []
    names = f"[...{GRAPH}.querySelectorAll('.legendtext')].map(t => t.textContent)"
    assert browser.run(names) == ["a<!--<script &b", "run-2"]
    browser.run("document.querySelectorAll('.axes input')[2].click()")
    assert browser.run("document.querySelector('.xtitle').textContent") == "training time (min)"
    assert "sample 40</script>" in browser.run("document.querySelector('.newest').innerText")
