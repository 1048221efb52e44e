"""The pages say what the code says: help texts, keys, links, names of commands and options.

tests/test_docs_commands.py runs their commands.
"""

import importlib.util
import json
import re
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import typer

from linnet.cli import app
from linnet.config import Part, Recipe
from linnet.recipe import fields_of
from tests.pages import ROOT, Block, blocks_of, pages

PAGES = [pytest.param(page, id=page.name) for page in pages()]
LANGUAGES = {"sh", "python", "text", "json", "toml"}
COMMAND = re.compile(r"^(\$ )?(linnet|make|python|pip|git|\. )\b", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@cache
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def blocks(*languages: str) -> list[Block]:
    return [block for page in pages() for block in blocks_of(page) if block.language in languages]


def test_generated_pages_are_up_to_date() -> None:
    stale = [page.name for page, text in maker().made().items() if page.read_text(encoding="utf-8") != text]
    assert not stale, "run `make docs`"


def test_each_verb_has_a_page_with_its_help() -> None:
    for verb in maker().verbs():
        page = ROOT / "docs" / f"{verb}.md"
        assert page.is_file(), f"write {page.name}"
        assert f"<!-- help: {verb} -->" in page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_linked_from_somewhere() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in pages()
        for link in LINK.findall(prose(page))
    }
    alone = {page.name for page in (ROOT / "docs").glob("*.md")} - {page.name for page in linked}
    assert not alone


def test_blocks_say_what_they_are() -> None:
    """A command stands in a block that is run, or above it stands why not."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for block in blocks_of(page):
            assert block.language in LANGUAGES, f"{block.place}: one of {sorted(LANGUAGES)}"
            quoted = block.mark or f"<!-- help: {page.stem} -->\n```text\n{block.text}" in text
            if block.language == "text" and not quoted:
                assert not COMMAND.search(block.text), f"{block.place}: a command in a text block"


def test_json_and_toml_parse() -> None:
    for block in blocks("json"):
        for line in block.text.splitlines() if block.text.count("\n{") else [block.text]:
            json.loads(line)
    for block in blocks("toml"):
        tomllib.loads(block.text)


def keys() -> set[str]:
    parts = {name: field.annotation for name, field in Recipe.model_fields.items()}
    return {
        key
        for name, kind in parts.items()
        if isinstance(kind, type) and issubclass(kind, Part)
        for key in fields_of(kind, f"{name}.")
    }


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_prose_exist(page: Path) -> None:
    """Verbs, options and keys of `linnet`, options of `python benchmarks/...`, targets of `make`."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for span in SPAN.findall(prose(page)):
        words = span.split()
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[:1] == ["linnet"] and len(words) > 1 and not words[1].startswith("-"):
            if words[1] in {"VERB", "..."}:
                continue
            assert words[1] in known, span
            names = {name for option in known[words[1]].params for name in option.opts} | {"--help"}
            assert options <= names, span
            given = {word.partition("=")[0] for word in words[2:] if re.match(r"[a-z]+\.[a-z_.]+=", word)}
            assert given <= keys(), span
        elif len(words) > 1 and words[0] == "python" and words[1].startswith("benchmarks/"):
            script = (ROOT / words[1]).read_text()
            assert all(f'"{option.rstrip("]")}"' in script for option in options), span
        elif words[:1] == ["make"] and len(words) > 1 and words[1].islower():
            assert words[1] in targets, span
