"""How the chat looks, light, dark and on a phone, and whether everybody can read and use it."""

import re
from pathlib import Path

import pytest

import linnet
from tests.browser import Browser, needs_chromium
from tests.serve.pages import Reader
from tests.serve.servers import Served

STATIC = Path(linnet.__file__).parent / "serve" / "static"
TEMPLATES = STATIC.parent.parent / "templates"

pytestmark = needs_chromium


def test_light_dark_and_the_switch(browser: Browser, server: Served) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for dark in (False, True):
        Reader(browser, server.url, dark=dark)
        seen[dark] = browser.run(ground)
        assert browser.run("document.querySelector('#theme').ariaPressed") == str(dark).lower()
        browser.click("#theme")
        assert browser.run(ground) != seen[dark]
        browser.reload()
        assert browser.run(ground) != seen[dark], "the choice is kept"
    assert seen == {False: "rgb(251, 250, 247)", True: "rgb(22, 24, 28)"}


COLOUR = """(() => {
  document.body.style.color = 'var(NAME)';
  return getComputedStyle(document.body).color;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_letters_can_be_read(browser: Browser, server: Served, dark: bool) -> None:
    """4.5:1 for what is text (WCAG AA), on each of the grounds that it stands on; 3:1 for the edges of fields."""
    Reader(browser, server.url, dark=dark)
    grounds = ("--ground", "--card", "--soft")
    pairs = [(ink, ground, 4.5) for ink in ("--ink", "--faint") for ground in grounds]
    pairs += [("--learned-ink", "--learned", 4.5), ("--warn", "--ground", 4.5), ("--warn", "--card", 4.5)]
    pairs += [("--edge", "--card", 3.0), ("--edge", "--ground", 3.0)]
    for ink, ground, least in pairs:
        colours = [browser.run(COLOUR.replace("NAME", name)) for name in (ink, ground)]
        assert contrast(*colours) >= least, (ink, ground, contrast(*colours))


def contrast(one: str, other: str) -> float:
    """WCAG 2's, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_on_a_phone_nothing_sticks_out(browser: Browser, server: Served) -> None:
    reader = Reader(browser, server.url, width=390, phone=True)
    reader.ask("Hello " + "x" * 300)
    assert browser.run("document.documentElement.scrollWidth") == 390
    send = browser.run("document.querySelector('#composer button').getBoundingClientRect().toJSON()")
    assert send["right"] <= 390
    assert send["bottom"] <= 900
    small = """[...document.querySelectorAll('button, select')].filter((element) =>
      element.offsetWidth && Math.min(element.offsetHeight, element.offsetWidth) < 32
    ).map((element) => element.outerHTML)"""
    assert browser.run(small) == []
    browser.click("#settings-button")
    assert browser.run("document.querySelector('#settings').getBoundingClientRect().width") == 390
    browser.press("Escape")
    assert browser.run("document.querySelector('#settings').hidden")


def test_everything_has_a_name_for_who_cannot_see_it(reader: Reader) -> None:
    reader.ask("Hello")
    reader.browser.click("#settings-button")
    tree = reader.browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "textbox", "spinbutton", "slider", "combobox", "link", "log", "article", "image"}
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in named]
    assert {"button", "textbox", "spinbutton", "slider", "combobox", "log", "article"} <= {
        node["role"]["value"] for node in nodes
    }
    assert [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value")] == []


def test_the_colours_are_those_of_the_reports() -> None:
    house = (TEMPLATES / "house.css.j2").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"(--[\w-]+): (#\w+)", part)) for part in house.split("@media", 2)[:2])
    ours = dict(
        re.findall(r"(--[\w-]+): light-dark\(([^)]*)\)", (STATIC / "style.css").read_text(encoding="utf-8"))
    )
    shared = light.keys() & ours.keys()
    assert len(shared) >= 8
    assert {name: ours[name] for name in shared} == {name: f"{light[name]}, {dark[name]}" for name in shared}
