"""What people and models write stays text, whatever it says and however it comes (V7)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import linnet
from linnet.model.chat_template import write_template
from linnet.model.pretrained import save_model
from linnet.turns.template import CHAT
from tests.browser import Browser, needs_chromium
from tests.generate.networks import scripted
from tests.model.examples import tokenizer
from tests.serve.dripping import dripping
from tests.serve.pages import ACT, AWAY, LAST, PAYLOADS, Reader
from tests.serve.servers import Served, serving

STATIC = Path(linnet.__file__).parent / "serve" / "static"
HOSTILE = f"Hi é🐦 </div><img src=x onerror={ACT}><script src={AWAY}></script>"
HOSTILE_NAME = "<img src=x onerror=caught=1>"

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Served]:
    """talk, plain, endless, and one that writes what it should not, under a name that it should not have."""
    hostile = scripted(HOSTILE, prompt="Go", template=CHAT)
    folder = models / HOSTILE_NAME
    if not folder.is_dir():
        folder.mkdir()
        save_model(folder, hostile.network, tokenizer=hostile.tokenizer)
        write_template(folder, CHAT, end_token=tokenizer().end_token)
    names = [str(models / name) for name in ("talk", "plain", "endless", HOSTILE_NAME)]
    with serving(*names, "--precision", "fp32") as served:
        yield served


def test_nothing_that_a_model_writes_or_is_called_runs(browser: Browser, server: Served) -> None:
    reader = Reader(browser, server.url, model=HOSTILE_NAME)
    assert browser.run("document.querySelector('#welcome h1').textContent") == HOSTILE_NAME
    assert reader.ask("Go") == HOSTILE
    assert browser.run(f"{LAST}.ariaLabel") == HOSTILE_NAME
    reader.ask(HOSTILE)
    assert reader.texts[2] == HOSTILE
    browser.reload()
    browser.wait("document.querySelectorAll('.message').length === 4")
    assert reader.texts[:3] == ["Go", HOSTILE, HOSTILE]
    reader.is_unharmed()


def drip(browser: Browser, payloads: list[str]) -> None:
    """Each of them, byte by byte, as an answer."""
    with dripping(payloads) as url:
        reader = Reader(browser, url)
        for number, payload in enumerate(payloads):
            if number % 20 == 0 and number:
                browser.click("#new")
            assert reader.ask(str(number)) == payload
            assert reader.browser.run("window.caught") is None, payload
        reader.is_unharmed()


def test_texts_that_come_byte_by_byte_stay_text(browser: Browser) -> None:
    drip(browser, PAYLOADS[::15] + PAYLOADS[4::50])  # each form or each way to wrap it, not each pair


@pytest.mark.slow
def test_three_hundred_texts_that_come_byte_by_byte_stay_text(browser: Browser) -> None:
    drip(browser, PAYLOADS)


def test_events_come_whole_however_they_are_cut(reader: Reader) -> None:
    stream = 'data: {"a":"é🐦"}\r\n\r\n: comment\ndata:one\rdata: two\r\revent: x\ndata\n\ndata:  [DONE]\n\ndata: torn'
    script = f"""(async () => {{
      const {{ events }} = await import('/static/sse.js');
      const bytes = new TextEncoder().encode({json.dumps(stream)});
      const all = [];
      for (let size = 1; size <= bytes.length; size++) {{
        const body = new ReadableStream({{ start(to) {{
          for (let i = 0; i < bytes.length; i += size) to.enqueue(bytes.slice(i, i + size));
          to.close();
        }} }});
        const found = [];
        for await (const data of events(body)) found.push(data);
        all.push(JSON.stringify(found));
      }}
      return [...new Set(all)];
    }})()"""
    (only,) = reader.browser.run(script)
    assert json.loads(only) == ['{"a":"é🐦"}', "one\ntwo", " [DONE]"]


def test_the_files_keep_to_the_policy() -> None:
    """No markup is ever made of a string, and no page has script or style of its own."""
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text
        )
        assert not found, (path.name, found)
    for path in STATIC.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|https?://", text), path.name
