"""Write the generated pages: docs/keys.md from the recipe's fields, docs/commands.md from `--help`.

`make docs` runs this; tests/test_docs.py compares the pages with what it would write.
"""

import os
from pathlib import Path

from typer.testing import CliRunner

from linnet.cli import app
from linnet.config import Part, Recipe
from linnet.recipe import RECIPES, fields_of, recipe_names

HERE = Path(__file__).parent


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
    """The help text of every verb."""
    os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    lines = ["# The commands", "", "This page is generated from `--help` by `make docs`."]
    verbs = [
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    ]
    for words in [[], *([verb] for verb in verbs)]:
        shown = " ".join(["linnet", *words])
        text = CliRunner().invoke(app, [*words, "--help"], prog_name="linnet", terminal_width=100).output
        lines += ["", f"## {shown}", "", "```", *(line.rstrip() for line in text.strip().splitlines()), "```"]
    return "\n".join(lines) + "\n"


PAGES = {"keys.md": keys_page, "commands.md": commands_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (HERE / page).write_text(write(), encoding="utf-8")
