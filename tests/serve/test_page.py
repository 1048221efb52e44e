"""The chat in a real browser, before a real server: typed, clicked and looked at."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, needs_chromium
from tests.serve.pages import LAST, WRITING, Reader
from tests.serve.servers import Served, serving

pytestmark = needs_chromium


def answered(server: Served, said: list[tuple[str, str]], **options: Any) -> str:
    """What the API says to the same."""
    messages = [{"role": role, "content": text} for role, text in said]
    body = {"model": "talk", "messages": messages, "temperature": 0.8, "top_p": 0.95, "max_tokens": 200}
    answer = server.post("/v1/chat/completions", body | options).json()
    return str(answer["choices"][0]["message"]["content"])


def test_what_is_written_is_what_the_api_says_turn_after_turn(reader: Reader, server: Served) -> None:
    reader.set("seed", "7")
    first = reader.ask("Hello")
    assert first == answered(server, [("user", "Hello")], seed=7)
    second = reader.ask("And then?")
    said = [("user", "Hello"), ("assistant", first), ("user", "And then?")]
    assert second == answered(server, said, seed=7)
    assert reader.texts == ["Hello", first, "And then?", second]
    assert re.fullmatch(r"(Cut at the limit of )?\d+ tokens?( · [\d.]+ tokens/s)? · seed 7", reader.note)
    assert reader.browser.run("document.querySelector('#text').value") == ""
    reader.is_unharmed()


def test_the_system_text_and_each_setting_is_sent(reader: Reader, server: Served) -> None:
    options = {
        "temperature": 1.3,
        "top_p": 0.7,
        "top_k": 9,
        "max_tokens": 12,
        "repetition_penalty": 1.5,
        "seed": 3,
    }
    for name, value in options.items():
        reader.set(name, str(value))
    reader.set("system", "Be brief")
    written = reader.ask("Hello")
    assert written == answered(server, [("system", "Be brief"), ("user", "Hello")], **options)
    assert written != answered(server, [("user", "Hello")], **options)


def test_a_wrong_setting_is_marked_and_nothing_is_sent(reader: Reader) -> None:
    reader.set("temperature", "9")
    assert reader.browser.run("document.querySelector('#temperature-error').textContent") == "From 0 to 2."
    reader.say("Hello")
    assert reader.browser.run("document.activeElement.id") == "temperature"
    assert reader.browser.run("document.querySelector('#text').value") == "Hello"
    assert reader.texts == []
    reader.browser.click("#settings-form button[type=reset]")
    reader.browser.wait("document.querySelector('#temperature').value === '0.8'")
    reader.browser.wait("document.querySelector('#temperature-error').textContent === ''")


def test_slider_and_number_are_one_value(reader: Reader) -> None:
    slider = "document.querySelector('[data-of=temperature]')"
    reader.set("temperature", "1.5")
    assert reader.browser.run(f"{slider}.value") == "1.5"
    reader.browser.run(
        f"{slider}.focus(), {slider}.value = '0.5', {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
    assert reader.browser.run("document.querySelector('#temperature').value") == "0.5"


def test_an_answer_that_was_cut_says_so(reader: Reader) -> None:
    reader.set("max_tokens", "5")
    reader.choose("endless")
    reader.ask("Hello")
    assert reader.note.startswith("Cut at the limit of 5 tokens")


@pytest.mark.parametrize("way", ["the key", "the button"])
def test_stop_stops_the_server_and_keeps_what_is_there(reader: Reader, server: Served, way: str) -> None:
    reader.choose("endless")
    reader.set("max_tokens", "16384")
    reader.say("Hello")
    reader.browser.wait(f"{WRITING}?.querySelector('.text').textContent.length > 20")
    if way == "the key":
        reader.browser.press("Escape")
    else:
        reader.browser.click("#composer button")
    assert len(reader.answer()) > 20
    assert reader.note == "Stopped"
    server.wait_until_quiet(seconds=5)
    reader.set("max_tokens", "3")
    reader.ask("Go on")
    assert len(reader.texts) == 4


def test_typing_while_it_writes_is_kept_and_not_sent(reader: Reader) -> None:
    reader.choose("endless")
    reader.set("max_tokens", "16384")
    reader.say("Hello")
    reader.browser.wait(f"{WRITING}?.querySelector('.text').textContent.length > 5")
    reader.say("Meanwhile")
    assert reader.browser.run("document.querySelector('#text').value") == "Meanwhile"
    assert len(reader.texts) == 2
    reader.browser.press("Escape")
    reader.answer()


def test_written_again_takes_the_next_seed(reader: Reader, server: Served) -> None:
    reader.set("seed", "7")
    first = reader.ask("Hello")
    reader.browser.click(".message.assistant .retry")
    second = reader.answer()
    assert reader.note.endswith("seed 8")
    assert second == answered(server, [("user", "Hello")], seed=8) != first
    assert len(reader.texts) == 2


def test_a_message_is_edited_and_what_followed_goes(reader: Reader, server: Served) -> None:
    reader.set("seed", "1")
    reader.ask("First")
    reader.ask("Second")
    reader.browser.press("ArrowUp", ctrl=True)
    assert reader.browser.run("document.activeElement.value") == "Second"
    reader.browser.press("Escape")
    assert reader.texts[2] == "Second"
    reader.browser.click(".message.user .edit")
    reader.browser.run("document.activeElement.select()")
    reader.browser.type("Other")
    reader.browser.press("Enter", shift=True)
    reader.browser.type("line")
    reader.browser.press("Enter")
    written = reader.answer()
    assert reader.texts == ["Other\nline", written]
    assert written == answered(server, [("user", "Other\nline")], seed=1)


def test_lines_are_kept_as_they_were_typed(reader: Reader) -> None:
    reader.browser.click("#text")
    reader.browser.type("one")
    reader.browser.press("Enter", shift=True)
    reader.browser.press("Enter", shift=True)
    reader.browser.type("  two <b>&amp;</b>")
    reader.browser.press("Enter")
    reader.answer()
    assert reader.texts[0] == "one\n\n  two <b>&amp;</b>"
    height = "document.querySelector('.message.user .text').getBoundingClientRect().height"
    assert reader.browser.run(height) > 80  # three lines


def test_a_model_without_turns_goes_on_with_a_text(reader: Reader, server: Served) -> None:
    reader.ask("Hello")
    reader.choose("plain")
    assert reader.texts == []
    assert "goes on with your text" in reader.browser.run("document.querySelector('#welcome p').textContent")
    assert reader.browser.run("document.querySelector('#system').closest('.field').hidden")
    reader.set("seed", "4")
    reader.set("max_tokens", "20")
    prompt = "Once upon a time"
    body = {"model": "plain", "temperature": 0.8, "top_p": 0.95, "max_tokens": 20, "seed": 4}

    def completed(text: str) -> str:
        answer = server.post("/v1/completions", body | {"prompt": text}).json()
        return str(answer["choices"][0]["text"])

    first = reader.ask(prompt)
    assert first == completed(prompt)
    reader.browser.click("#text")
    reader.browser.press("Enter")  # nothing typed: it goes on where the text ends
    reader.browser.wait("document.querySelectorAll('.message').length === 3")
    assert reader.answer() == completed(prompt + first)
    assert reader.browser.run("getComputedStyle(document.querySelector('.message')).display") == "inline"
    reader.choose("talk")
    assert reader.texts[0] == "Hello"


def test_a_conversation_survives_a_reload_until_a_new_one_begins(reader: Reader) -> None:
    reader.ask("Hello")
    before = reader.texts
    reader.browser.reload()
    reader.browser.wait("document.querySelectorAll('.message').length === 2")
    assert reader.texts == before
    reader.browser.click("#new")
    assert reader.texts == []
    assert reader.browser.run("document.querySelector('#welcome h1').textContent") == "talk"
    reader.browser.reload()
    reader.browser.wait("document.querySelector('#welcome h1').textContent === 'talk'")
    assert reader.texts == []


def test_an_example_begins_a_conversation(reader: Reader) -> None:
    reader.browser.click(".examples button")
    reader.answer()
    assert len(reader.texts) == 2


def test_a_stroke_leads_to_the_field(reader: Reader) -> None:
    reader.browser.click("#welcome h1")
    assert reader.browser.run("document.activeElement.id") != "text"
    reader.browser.press("/")
    assert reader.browser.run("document.activeElement.id") == "text"
    assert reader.browser.run("document.querySelector('#text').value") == ""
    reader.browser.press("/")
    assert reader.browser.run("document.querySelector('#text').value") == "/"


def test_copied_is_the_text(reader: Reader) -> None:
    written = reader.ask("Hello")
    reader.browser.call(
        "Browser.setPermission", permission={"name": "clipboard-read"}, setting="granted", origin=reader.url
    )
    reader.browser.call("Page.bringToFront")
    reader.browser.click(".message.assistant .copy")
    reader.browser.wait(f"{LAST}.querySelector('.copy').ariaLabel === 'Copied'")
    assert reader.browser.run("navigator.clipboard.readText()") == written


# Errors.


def test_a_key_is_asked_for_once_and_forgotten_with_the_tab(browser: Browser, models: Path) -> None:
    with serving(
        str(models / "talk"), "--precision", "fp32", "--api-key", "secret-7", key="secret-7"
    ) as server:
        browser.open_anew(server.url, kept={})
        for said, key in (("asks for a key", "wrong"), ("did not accept", "secret-7")):
            browser.wait(f"document.querySelector('#key[open] p')?.textContent.includes('{said}')")
            browser.type(key)
            browser.press("Enter")
        browser.wait("!document.querySelector('#key').open")
        browser.wait("document.querySelector('#welcome h1').textContent === 'talk'")
        browser.reload()
        browser.wait("document.querySelector('#welcome h1').textContent === 'talk'")
        assert not browser.run("document.querySelector('#key').open")
        assert "secret-7" not in browser.run("JSON.stringify(localStorage) + document.cookie + location")


def test_who_comes_too_late_is_told_to_wait(browser: Browser, models: Path) -> None:
    options = ("--precision", "fp32", "--queue", "1", "--together", "1")
    with serving(str(models / "endless"), *options) as server:
        reader = Reader(browser, server.url)
        stop = threading.Event()
        busy = [threading.Thread(target=occupy, args=(server, stop)) for _ in range(2)]
        for thread in busy:
            thread.start()
        until = time.monotonic() + 20
        while not (server.metric("linnet_running") and server.metric("linnet_waiting")):
            assert time.monotonic() < until
        reader.set("max_tokens", "4")
        reader.say("Hello")
        browser.wait("document.querySelector('.failure')")
        assert browser.run("document.querySelector('.failure p').textContent").endswith(".")
        assert re.fullmatch(
            r"Try again in \d+ s", browser.run("document.querySelector('.failure .retry').textContent")
        )
        assert browser.run("document.querySelector('.failure .retry').disabled")
        stop.set()
        for thread in busy:
            thread.join()
        server.wait_until_quiet()
        browser.wait("!document.querySelector('.failure .retry').disabled")
        browser.click(".failure .retry")
        assert reader.answer()
        assert browser.run("document.querySelector('.failure')") is None


def occupy(server: Served, stop: threading.Event) -> None:
    """Ask for something long until told to go."""
    body = {"model": "endless", "prompt": "x", "max_tokens": 16384, "stream": True}
    with server.http() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        for _ in answer.iter_bytes():
            if stop.is_set():
                return


def test_a_server_that_is_gone_is_said_and_asked_again(browser: Browser, models: Path) -> None:
    with serving(str(models / "talk"), "--precision", "fp32") as server:
        reader = Reader(browser, server.url)
    reader.say("Hello")
    browser.wait("document.querySelector('.failure')")
    assert "Is linnet serve still running?" in browser.run("document.querySelector('.failure').textContent")
    browser.click(".failure .retry")
    browser.wait(f"!{WRITING} && document.querySelector('.failure')")
    assert len(reader.texts) == 2


def test_what_the_server_refuses_is_said_in_its_words(reader: Reader, server: Served) -> None:
    reader.browser.run("document.querySelector('#system').value = 'x'.repeat(1_200_000)")
    reader.say("Hello")
    reader.browser.wait("document.querySelector('.failure')")
    refused = server.post("/v1/chat/completions", {"model": "talk", "messages": "x" * 1_200_000})
    assert refused.status_code == 413
    said = reader.browser.run("document.querySelector('.failure p').textContent")
    assert said == refused.json()["error"]["message"]
    reader.browser.run("document.querySelector('#system').value = ''")
    reader.browser.click(".failure .retry")
    assert reader.answer()


def test_the_view_follows_the_end_unless_one_has_scrolled_up(reader: Reader) -> None:
    reader.choose("endless")
    reader.set("max_tokens", "16384")
    reader.say("Hello")
    scroll = "document.querySelector('#scroll')"
    end = f"{scroll}.scrollHeight - {scroll}.scrollTop - {scroll}.clientHeight"
    reader.browser.wait(f"{scroll}.scrollTop > 100")
    assert reader.browser.run(end) < 48
    reader.browser.run(f"{scroll}.scrollTop = 0")
    reader.browser.wait("!document.querySelector('#to-the-end').hidden")
    before = reader.browser.run(f"{scroll}.scrollHeight")
    reader.browser.wait(f"{scroll}.scrollHeight > {before}")
    assert reader.browser.run(f"{scroll}.scrollTop") == 0
    reader.browser.click("#to-the-end")
    assert reader.browser.run(end) < 48
    reader.browser.press("Escape")
    reader.answer()
