"""Rows to inspect, and what the command answers."""

import json
from pathlib import Path
from typing import Any

TINY = ("model.init_from=scratch", "tokenizer.name=bpe", "tokenizer.vocab_size=300")
THINGS = ["apples", "pears", "plums", "grapes", "cherries", "lemons", "limes", "figs", "dates", "nuts"]


def question(number: int) -> dict[str, str]:
    what = THINGS[number % len(THINGS)]
    asked = f"{number} children have {number + 2} {what} each and eat one of them. How many {what} are left?"
    return {"question": asked, "answer": f"Each has {number + 1} left.\n#### {number * (number + 1)}"}


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
