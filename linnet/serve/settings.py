"""What a server is told: where it listens, whom it answers, how much it takes on.

Why: on a shared network a server is found within minutes. So what opens it up has to be asked for, and what does not
fit together is refused before a port is open.
How: `Settings` checks itself.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from linnet.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """A value that does not fit is a UsageError that names it."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    api_key: str = ""
    """Who has it may ask; empty: who reaches the port may."""
    runs: Path | None = None
    """A folder of runs that is shown."""
    precision: str = "auto"
    queue: int = 256
    """Texts that may wait; who comes then is asked to come later."""
    together: int = 32
    """Texts that are written at once."""
    idle_minutes: float = 15.0
    """A model that nobody asked for so long gives its memory back."""
    allow_hosts: Sequence[str] = ()
    """Names by which this server may be called, besides this machine's own."""
    allow_origins: Sequence[str] = ()
    """Pages elsewhere that may ask, such as https://example.org."""
    most_body: int = MIB
    """Bytes of a request."""
    seconds_to_arrive: float = 8.0
    """Until a request is there as a whole."""
    seconds_to_answer: float = 600.0
    """Then an answer ends where it is."""
    seconds_to_drain: float = 20.0
    """The same for those that are not done when the server is told to stop."""

    def __post_init__(self) -> None:
        for name in ("queue", "together"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}, but must be at least 1.")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port is {self.port}, but must be from 0 to 65535.")
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"--precision is {self.precision!r}, but must be one of {', '.join(PRECISIONS)}."
            )
        if not self.idle_minutes > 0:
            raise UsageError(f"--idle-minutes is {self.idle_minutes}, but must be above 0.")
        if self.api_key and not re.fullmatch(r"[!-~]+", self.api_key):
            raise UsageError(
                "The API key must be of visible ASCII characters without spaces; choose another."
            )
        if not is_loopback(self.host) and not self.api_key:
            raise UsageError(
                f"--host {self.host} is open to the network, and there is no key: add --api-key KEY (or set "
                "LINNET_API_KEY), or leave out --host to listen on this machine alone."
            )
        for origin in self.allow_origins:
            if not re.fullmatch(r"https?://[^/?#@\s*]+", origin):
                raise UsageError(
                    f"--allow-origin is {origin!r}, but must be of the form https://example.org, with a port where it "
                    "is not the usual one."
                )
        for host in self.allow_hosts:
            if not re.fullmatch(r"[\w.:-]+", host):
                raise UsageError(
                    f"--allow-host is {host!r}, but must be a name or an address, without a port."
                )
        if self.runs is not None and not self.runs.is_dir():
            raise UsageError(f"--runs {self.runs} is no folder.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
