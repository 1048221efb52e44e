"""The line on stderr while something is measured."""

from __future__ import annotations

from linnet.track.progress import Progress


class MeasuringProgress(Progress):
    """`runs/mine: loss, 12,345/67,890 tokens  18 %  11 s left`"""

    def __init__(self, what: str, total: int, *, unit: str) -> None:
        super().__init__(total)
        self._what, self._unit = what, unit

    def fields(self) -> list[str]:
        return [f"{self._what}, {self.done:,}/{self.total:,} {self._unit}", *self.share_and_time()]
