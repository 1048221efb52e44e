"""Write what the pages take from the code: keys.md and commands.md whole, and the help texts in the pages of the verbs.

A help text stands between the lines `<!-- help: VERB -->` and `<!-- end -->`, in any page of docs/.
`make docs` runs this; tests/test_docs.py compares the pages with what it would write.
"""

import os
import re
from pathlib import Path

from typer.testing import CliRunner

from linnet.cli import app
from linnet.config import Part, Recipe
from linnet.recipe import RECIPES, fields_of, recipe_names

HERE = Path(__file__).parent
HELP = re.compile(r"(<!-- help: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def keys_page() -> str:
    """All keys of a recipe with type, default and help text, and the built-in recipes."""
    lines = [
        "# The keys of a recipe",
        "",
        "Set a key in a .toml file or as `KEY=VALUE` behind `linnet train RECIPE`. `auto` means: chosen from your data",
        "and machine at the start of the run; the table at the start says what was chosen and why.",
        "This page is generated from the code by `make docs`.",
    ]
    for name, part in Recipe.model_fields.items():
        kind = part.annotation
        if not (isinstance(kind, type) and issubclass(kind, Part)):
            continue
        lines += ["", f"## {name}", "", "| key | default | what it is |", "|---|---|---|"]
        for key, field in fields_of(kind, f"{name}.").items():
            default = "not set" if field.default is None else f"`{field.default!r}`".replace("'", '"')
            lines.append(f"| `{key}` | {default} | {' '.join(field.description.split())} |")
    lines += ["", "## The built-in recipes"]
    for recipe in recipe_names():
        text = (RECIPES / f"{recipe}.toml").read_text(encoding="utf-8").strip()
        lines += ["", f"### {recipe}", "", "```toml", text, "```"]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """A link to the page of each verb, and what `linnet --help` prints."""
    links = [f"[{verb}]({verb}.md)" for verb in verbs()]
    lines = ["# The commands", "", "Each command has a page: " + ", ".join(links) + "."]
    lines += ["This page is generated from `--help` by `make docs`.", "", ""]
    return "\n".join(lines) + help_block()


def verbs() -> list[str]:
    """The verbs of the command line, in its order."""
    return [
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    ]


def help_block(*words: str) -> str:
    """What `linnet WORDS --help` prints, as a fenced block."""
    os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    text = CliRunner().invoke(app, [*words, "--help"], prog_name="linnet", terminal_width=100).output
    return "\n".join(["```text", *(line.rstrip() for line in text.strip().splitlines()), "```"]) + "\n"


def made() -> dict[Path, str]:
    """The pages that are generated, whole or in part, and their text as it has to be."""
    wanted = {HERE / "keys.md": keys_page(), HERE / "commands.md": commands_page()}
    for page in sorted(set(HERE.glob("*.md")) - set(wanted)):
        text = page.read_text(encoding="utf-8")
        if HELP.search(text):
            wanted[page] = HELP.sub(lambda found: found[1] + help_block(found[2]) + found[3], text)
    return wanted


if __name__ == "__main__":
    for page, text in made().items():
        page.write_text(text, encoding="utf-8")
