"""The live view of runs: what it says, what it survives, and how it looks in a browser."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from linnet.files import Lock
from linnet.track.metrics import RowFile
from tests.browser import Browser, needs_chromium
from tests.serve.pages import go_on
from tests.serve.servers import Served, serving
from tests.track.test_report import HOSTILE, make_run

STRANGE = "a<!--<script &b #1?%2e"


# Over the wire, from a real server.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "mine")
    make_run(folder / "live", steps=40, text=" and so on")
    make_run(folder / STRANGE)
    (folder.parent / "secret").mkdir()
    (folder.parent / "secret" / "recipe.toml").write_text('name = "secret"')
    return folder


@pytest.fixture(scope="module")
def server(models: Path, folder: Path) -> Iterator[Served]:
    words = (str(models / "talk"), "--precision", "fp32", "--runs", str(folder), "--api-key", "k3y")
    with serving(*words, key="k3y") as served:
        yield served


def test_the_page_is_open_and_the_runs_want_the_key(server: Served) -> None:
    with httpx.Client(base_url=server.url) as stranger, server.http() as friend:
        page = stranger.get("/runs")
        assert page.status_code == 200
        policy = page.headers.get_list("content-security-policy")
        assert len(policy) == 1
        assert "style-src 'self' 'unsafe-inline'" in policy[0]
        assert "script-src 'self';" in policy[0]
        assert stranger.get("/static/page.json").json() == {"runs": True}
        script = stranger.get("/runs/plotly.js")
        assert len(script.content) > 1_000_000
        assert "max-age" in script.headers["cache-control"]
        assert "unsafe-inline" not in stranger.get("/").headers["content-security-policy"]
        for path in ("/runs/data", "/runs/data/mine"):
            assert stranger.get(path).status_code == 401
            assert friend.get(path).status_code == 200


NO_NAMES = (
    *(
        "..",
        ".",
        "",
        "%2e%2e",
        "..%2f..%2fsecret",
        "%2e%2e%2fsecret",
        "..%5csecret",
        "%2fetc%2fpasswd",
        "%ff%fe",
    ),
    *("secret", "mine%00", "mine%2f..%2fmine", "mine/checkpoints", "mine%20", "Mine"),
)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_is_no_path(server: Served, name: str) -> None:
    with server.connect() as connection:
        lines = [f"GET /runs/data/{name} HTTP/1.1", "Host: localhost", "Authorization: Bearer k3y"]
        request = "\r\n".join([*lines, "Connection: close", "", ""])
        connection.sendall(request.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.split(b"\r\n")[0] in (b"HTTP/1.1 404 Not Found", b"HTTP/1.1 307 Temporary Redirect"), (
        answer[:300]
    )
    assert b"curves" not in answer
    assert b"root:" not in answer


def test_a_name_that_urls_know_otherwise_is_found(server: Served) -> None:
    with server.http() as friend:
        answer = friend.get(f"/runs/data/{quote(STRANGE, safe='')}").json()
        assert answer["run"]["name"] == STRANGE
        assert HOSTILE.split("\x1b")[0] in answer["samples"][-1]["samples"][0][1]


def test_many_may_look_at_once(server: Served) -> None:
    found: list[int] = []

    def look() -> None:
        with server.http() as friend:
            found.extend(
                len(friend.get(f"/runs/data/{name}").json()["run"]["name"]) for name in ("mine", "live") * 5
            )

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4] * 80


# In a browser.


GRAPH = "document.getElementById('figure-loss')"
DRAWN = f"{GRAPH}?.calcdata?.length"


def look(browser: Browser, server: Served, place: str = "", **screen: Any) -> None:
    """Open the page as one who has given the key in this tab."""
    browser.open("about:blank")  # Else another #place would be the same page, as it is.
    browser.open_anew(f"{server.url}/runs{place}", kept={"linnet-key": "k3y"}, **screen)
    browser.wait(DRAWN)


@needs_chromium
def test_the_curves_are_drawn_without_asking_anybody_else(browser: Browser, server: Served) -> None:
    look(browser, server, "#mine")
    assert [url for url in browser.requests if not url.startswith(server.url)] == []
    assert browser.complaints == []
    assert browser.run("document.title") == "mine: finished · Linnet"  # no sample's script has run
    names = f"{GRAPH}.data.map(trace => trace.name)"
    assert browser.run(names) == ["each step", "training, moving mean", "held out"]
    assert browser.run(f"{GRAPH}.calcdata[0].length") == 60
    assert browser.run("document.querySelectorAll('.scatterlayer .trace').length") == 6
    assert "sample 60</script>" in browser.run("document.querySelector('#written').textContent")
    assert browser.run("document.querySelectorAll('#written img').length") == 0


@needs_chromium
def test_a_run_in_progress_grows_before_ones_eyes(browser: Browser, server: Served, folder: Path) -> None:
    with Lock(folder / "live" / "lock"):
        look(browser, server, "#live")
        browser.wait("document.querySelector('#state').textContent === 'running'")
        assert browser.run(f"{GRAPH}.calcdata[0].length") == 40
        browser.run("window.before = document.querySelector('#list a')")
        go_on(folder / "live", first=41, last=43)
        browser.wait(f"{GRAPH}.calcdata[0].length === 43", seconds=10)
        assert browser.requests[-1].split("after=")[1].startswith("40.5."), "only what is new is asked for"
        go_on(folder / "live", first=44, last=58)
        with RowFile(folder / "live" / "samples.jsonl") as file:
            file.append({"step": 58, "prompt": "Once", "text": " newly written"})
        browser.wait(f"{GRAPH}.calcdata[0].length === 58", seconds=10)
        browser.wait("document.querySelector('#written').textContent.includes('newly written')", seconds=10)
        browser.wait("performance.getEntriesByType('resource').at(-1).name.endsWith('after=')", seconds=10)
        assert browser.complaints == []
    browser.wait("document.querySelector('#state').textContent === 'stopped'", seconds=10)


@needs_chromium
def test_nothing_is_asked_while_nobody_sees_it(browser: Browser, server: Served) -> None:
    look(browser, server, "#mine")
    hidden = "Object.defineProperty(document, 'hidden', {value: VALUE, configurable: true});"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    browser.run(hidden.replace("VALUE", "true") + tell)
    browser.run("new Promise(done => setTimeout(done, 300))")
    before = len(browser.requests)
    browser.run("new Promise(done => setTimeout(done, 4500))")
    assert len(browser.requests) == before
    browser.run(hidden.replace("VALUE", "false") + tell)
    browser.run("new Promise(done => setTimeout(done, 1000))")
    assert len(browser.requests) > before


@needs_chromium
def test_another_run_is_chosen_and_stands_in_the_address(browser: Browser, server: Served) -> None:
    look(browser, server)
    names = browser.run("[...document.querySelectorAll('.run-name')].map(e => e.textContent)")
    assert set(names) == {"mine", "live", STRANGE}
    browser.click(f"#list li:nth-child({names.index(STRANGE) + 1}) a")
    browser.wait(f"document.querySelector('#name').textContent === {json.dumps(STRANGE)}")
    assert browser.run("decodeURIComponent(location.hash)") == "#" + STRANGE
    browser.reload()
    browser.wait(f"document.querySelector('#name').textContent === {json.dumps(STRANGE)}")
    browser.run("location.hash = 'gone'")
    browser.wait("document.querySelector('#empty').textContent.includes('no run gone')")
    assert browser.run("document.querySelector('#run').hidden")


@needs_chromium
def test_the_axis_is_chosen_for_all_figures(browser: Browser, server: Served) -> None:
    look(browser, server, "#mine")
    for key, end in (("tokens", 512 * 60), ("time", 10), ("step", 60)):
        browser.click(f"#axes input[value={key}] + span")
        assert browser.run(f"{GRAPH}.calcdata[0].at(-1).x") == end
        titles = browser.run("[...document.querySelectorAll('.xtitle')].map(e => e.textContent)")
        assert titles == [{"step": "training step", "tokens": "tokens", "time": "training time (min)"}[key]]


@needs_chromium
def test_a_zoom_stays_while_the_run_goes_on(browser: Browser, server: Served, folder: Path) -> None:
    make_run(folder / "zoomed", steps=40, text="")
    look(browser, server, "#zoomed")
    whole = browser.run(f"{GRAPH}._fullLayout.xaxis.range")
    box = browser.run(f"{GRAPH}.querySelector('.nsewdrag').getBoundingClientRect().toJSON()")
    for kind, share in (
        ("mousePressed", 0.25),
        ("mouseMoved", 0.4),
        ("mouseMoved", 0.5),
        ("mouseReleased", 0.5),
    ):
        place = {"x": box["x"] + share * box["width"], "y": box["y"] + box["height"] / 2}
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)
    browser.wait(f"{GRAPH}._fullLayout.xaxis.range[0] > {whole[0]} + 5")
    zoomed = browser.run(f"{GRAPH}._fullLayout.xaxis.range")
    go_on(folder / "zoomed", first=41, last=60)
    browser.wait(f"{GRAPH}.calcdata[0].length === 60", seconds=10)
    assert browser.run(f"{GRAPH}._fullLayout.xaxis.range") == zoomed
    browser.click("#axes input[value=tokens] + span")
    browser.click("#axes input[value=step] + span")
    now = browser.run(f"{GRAPH}._fullLayout.xaxis.range")
    assert now == pytest.approx([-0.6, 61.2])
    go_on(folder / "zoomed", first=61, last=65)
    browser.wait(f"{GRAPH}.calcdata[0].length === 65", seconds=10)
    assert browser.run(f"{GRAPH}._fullLayout.xaxis.range") == pytest.approx([-0.65, 66.3])


@needs_chromium
def test_samples_slide_and_stay_where_they_are_put(browser: Browser, server: Served) -> None:
    look(browser, server, "#mine")
    slider = "document.querySelector('#evaluation')"
    browser.run(f"{slider}.value = 3, {slider}.dispatchEvent(new Event('input'))")
    assert browser.run("document.querySelector('#samples output').value") == "step 30"
    assert "sample 30</script>" in browser.run("document.querySelector('#written').textContent")


@needs_chromium
def test_without_runs_it_says_what_to_do(browser: Browser, models: Path, tmp_path: Path) -> None:
    with serving(str(models / "talk"), "--precision", "fp32", "--runs", str(tmp_path)) as server:
        browser.open(f"{server.url}/runs")
        browser.wait("document.querySelector('#empty').textContent.includes('linnet demo')")
        make_run(tmp_path / "new", steps=0)
        browser.wait("document.querySelector('#name').textContent === 'new'", seconds=10)
        browser.wait(
            "!document.querySelector('#no-rows').hidden || document.querySelector('.js-plotly-plot')"
        )


@needs_chromium
def test_light_dark_phone_and_the_way_to_the_chat(browser: Browser, server: Served) -> None:
    inks = set()
    for dark in (False, True):
        look(browser, server, "#mine", width=390, phone=True, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") == 390
        ink = f"getComputedStyle({GRAPH}.querySelector('.legendtext')).fill"
        inks.add(browser.run(ink))
        before = browser.run(ink)
        browser.click("#theme")
        browser.wait(f"{ink} !== {json.dumps(before)}")
    assert len(inks) == 2
    browser.click("a.home")
    browser.wait("document.querySelector('#composer') && !document.querySelector('#runs').hidden")
