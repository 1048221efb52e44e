"""Pages: HTML files that need nothing else.

What   `environment` loads the templates in the house's look; `Page` joins a template, figures and plotly's JavaScript
       into one file.
Why    A page can be sent to a colleague, opened in ten years and read on a train: it asks nobody for anything, and its
       own content security policy forbids it to.
How    Jinja2 with autoescape: what a model writes stays text. Plotly's bundle is read as a file from its package, since
       importing all of plotly costs seconds. The two scripts are allowed by their hashes, so that a third one
       would not run, wherever it came from.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from linnet import files
from linnet.track.progress import printable

BUNDLE_MARK = "<bundle/>"  # In text it would be escaped, so it cannot come from a run.


def environment(**filters: Callable[..., Any]) -> Environment:
    """The templates: every value is escaped and freed from control characters, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("linnet"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    made.filters.update(filters)
    return made


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no `<` that would end it, nothing but ASCII."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def tilde(text: str) -> str:
    """`~` for the home folder: a page is sent to others, and that folder mostly has its owner's name."""
    return re.sub(rf"{re.escape(str(Path.home()))}(?![\w.-])", "~", text)


class Page:
    """A template with figures. Loading costs 0.1 s, drawing it again only what is in it.

    `name`: of the template, which extends figures.html.j2.
    """

    def __init__(self, name: str) -> None:
        self._template = environment(tilde=tilde).get_template(name)
        self._bundle = _plotly()
        self._script = (resources.files("linnet") / "templates" / "figures.js").read_text(encoding="utf-8")
        self._policy = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
            for script in (self._bundle, self._script.encode())
        )

    def write(self, path: Path, *, figures: dict[str, Any], **values: Any) -> None:
        """Write the page to `path`, whole or not at all; it is not synced, as it can be drawn again.

        Args:
            figures: what templates/figures.js draws, see `linnet.track.report.curves`.
            values: what the template shows.

        Raises:
            DiskError: the disk is full, or the like.
        """
        page = self._template.render(
            bundle=Markup(BUNDLE_MARK),
            script=Markup(self._script),
            scripts=self._policy,
            figures=figures,
            figures_json=script_json(figures),
            **values,
        )
        before, after = page.encode(errors="replace").split(BUNDLE_MARK.encode())
        files.write_file(path, [before, self._bundle, after], durable=False)


@functools.cache
def _plotly() -> bytes:
    """Plotly's JavaScript, 4.8 MB; it holds no `</script`, which would end its element."""
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
