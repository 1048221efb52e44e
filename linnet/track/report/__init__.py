"""Pages of runs: report.html, and what `linnet runs --html` writes.

What stands on them is in `contents` and `curves`, how it is put on a page in `page` and the templates.
"""

from linnet.track.report.live import LiveReport, write_report

__all__ = ["LiveReport", "write_report"]
