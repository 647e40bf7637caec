"""What a reward server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Gauge, generate_latest

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Counters:
    """The counters of one server; several in a process do not share them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Calls to /score.")
        self.images = self._counter("images", "Images scored by the reward.")
        self.seconds = self._counter("seconds", "Seconds of computation in the reward.")
        self.errors = self._counter("errors", "Calls that were refused or failed.")
        self.waiting = Gauge(
            "flowward_reward_waiting", "Calls that wait for memory, their body or their turn.", registry=self._registry
        )

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"flowward_reward_{name}", what, registry=self._registry)

    def text(self) -> bytes:
        """All of them in Prometheus' text format (CONTENT_TYPE)."""
        return generate_latest(self._registry)
