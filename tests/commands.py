"""`linnet` as it is typed, in this process: importing torch costs 2 s each time."""

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from linnet import __main__ as command_line


class Result(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Any:
        """What `--json` printed; the command must have gone well."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Command = Callable[..., Result]


def runner(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *first: str) -> Command:
    """A function that runs `linnet FIRST... WORDS...`."""

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["linnet", *first, *words])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        code = ended.value.code
        captured = capfd.readouterr()
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return run
