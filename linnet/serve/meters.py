"""What /metrics says, in Prometheus' form.

Why a registry for each server: the library's own would be shared by all servers of a process.
How: counters and histograms are moved where things happen; gauges ask when they are read.
"""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ROUTES = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics", "/")

# A second series beside each counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Meters:
    """All figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter("linnet_requests", "Answered requests.", ["route", "status"], registry=here)
        self.admitted = Counter("linnet_admitted", "Requests for texts that were let in.", registry=here)
        self.read = Counter("linnet_prompt_tokens", "Tokens of prompts.", registry=here)
        self.written = Counter("linnet_written_tokens", "Tokens that were written.", registry=here)
        self.left = Counter(
            "linnet_clients_left", "Clients that left before their answer was done.", registry=here
        )
        self.seconds = Histogram(
            "linnet_request_seconds",
            "From a request to the end of its answer.",
            buckets=SECONDS,
            registry=here,
        )
        self.waited = Histogram(
            "linnet_waiting_seconds",
            "From a request to the start of each of its texts.",
            buckets=SECONDS,
            registry=here,
        )
        self.first = Histogram(
            "linnet_first_token_seconds",
            "From a request to the first token of a text.",
            buckets=SECONDS,
            registry=here,
        )
        ProcessCollector(registry=self.registry)

    def watch(self, **counts: Callable[[], float]) -> None:
        """Gauges by name, as linnet_NAME, each asked when it is read."""
        for name, count in counts.items():
            Gauge(f"linnet_{name}", MEANING[name], registry=self.registry).set_function(count)

    def count(self, path: str, status: int) -> None:
        """An answer; paths that nobody serves are one, so that a stranger cannot fill the memory with names."""
        self.requests.labels(path if path in ROUTES else "other", str(status)).inc()

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


MEANING = {
    "running": "Texts that are being written.",
    "waiting": "Texts that were let in and are not being written yet.",
    "models_loaded": "Models in memory.",
    "connections": "Open connections.",
}
