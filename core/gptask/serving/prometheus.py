"""What `/metrics` shows."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class ServerMetrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["run"]
        self.requests = Counter(
            "gptask_requests", "requests by run and status", [*labels, "status"], registry=self.registry
        )
        self.tokens = Counter("gptask_tokens", "tokens read and written", [*labels, "kind"], registry=self.registry)
        self.queue = Gauge("gptask_queue", "pieces of work that wait", registry=self.registry)
        self.batch_size = Histogram("gptask_batch_rows", "rows of a pass", ["kind"], registry=self.registry)
        self.first_token = Histogram(
            "gptask_time_to_first_token_seconds", "from a request to its first token", labels, registry=self.registry
        )
        self.token_seconds = Histogram(
            "gptask_seconds_per_token", "seconds a token after the first one", labels, registry=self.registry
        )

    def answered(self, run: str | None, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(run or "", str(status)).inc()  # minimal: the batcher's branch has the whole

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
