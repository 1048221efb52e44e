"""The report as a page: one file that needs nothing else.

Why    A page can be sent to a colleague and looked at on a phone.
How    Jinja2 with autoescape: text of the data stays text. No scripts and nothing from outside, which the page's own
       content security policy forbids as well.
"""

from __future__ import annotations

from pathlib import Path

from linnet import files
from linnet.look import words
from linnet.look.report import Report
from linnet.track.report.page import environment

TEMPLATE = "inspect.html.j2"
MOST_SHOWN = 6000  # characters of a segment


def render_page(report: Report) -> str:
    """The HTML of a report."""
    templates = environment(number=words.number, excerpt=lambda text: words.excerpt(text, MOST_SHOWN))
    return templates.get_template(TEMPLATE).render(report=report, words=words)


def write_page(path: Path, report: Report) -> None:
    """Write it to `path`, whole or not at all.

    Raises:
        DiskError: the disk is full. OSError: no such folder.
    """
    files.write_file(path, [render_page(report).encode(errors="replace")])
