"""chat_template.jinja of a model folder: the template of the turns that a model was trained on.

Why: with it, a prompt is put the way the training put it, here and in transformers' `apply_chat_template`.
How: the file that we write says in its first line which template it is, and only that line is read. A template of
another origin is a program in jinja; it is not executed.
"""

import json
from pathlib import Path
from typing import Any

from linnet import files
from linnet.errors import LinnetError
from linnet.turns.template import Template

CHAT_TEMPLATE = "chat_template.jinja"


def write_template(folder: Path, template: Template, *, end_token: str) -> None:
    """Write chat_template.jinja into the existing `folder`; `end_token` is the text of end-of-text."""
    files.write_file(folder / CHAT_TEMPLATE, [template.chat_template(end_token).encode()])


def read_template(folder: Path) -> tuple[Template | None, bool]:
    """The template that `write_template` wrote, and whether there is one of another origin instead.

    transformers before 4.50 saves the text of the file as `chat_template` in tokenizer_config.json; it is found there
    too. LinnetError for a file that cannot be read.
    """
    path = folder / CHAT_TEMPLATE
    source: Any = None
    try:
        if path.is_file():
            source = path.read_text(encoding="utf-8")
        else:
            path = folder / "tokenizer_config.json"
            if path.is_file():
                source = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise LinnetError(f"{path} cannot be read ({error}); copy it again.") from error
    template = Template.parse(source) if isinstance(source, str) else None
    return template, template is None and bool(source)
