"""What `/metrics` shows, with names and units by Prometheus' conventions.

The only labels are names of served models, the server's own routes and statuses: a request can't make up a label.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

NO_MODEL = ""  # the label of requests that name no served model
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """Counters, gauges and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"gptask_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"gptask_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"gptask_{name}", text, labels, buckets=buckets, registry=registry)

        # of the HTTP side
        self.requests = counter("requests", "answered requests", "run", "endpoint", "status")
        self.request_seconds = histogram(
            "request_duration_seconds", "from a request to the end of its answer", REQUEST_SECONDS, "run"
        )
        # of the registry
        self.loads = counter("model_loads", "runs that were loaded or could not be, at start and later", "outcome")
        for outcome in ("failed", "loaded"):
            self.loads.labels(outcome)  # shown from the start, so that the first failure is a change
        self.adapters = gauge("adapters_loaded", "adapters in memory")
        # of the batcher
        self.tokens_read = counter("tokens_read", "tokens of prompts and texts that were read", "run")
        self.tokens_written = counter("tokens_written", "tokens that were generated", "run")
        self.waiting = gauge("requests_waiting", "pieces of work that wait to be computed")
        self.active = gauge("requests_active", "pieces of work that are being computed")
        self.rows = gauge("decoding_rows", "texts that are being written")
        self.kv_bytes = gauge("kv_cache_bytes", "bytes reserved for keys and values")
        self.kv_limit = gauge("kv_cache_limit_bytes", "bytes of keys and values that may be reserved")
        self.scoring_batch = histogram("scoring_batch_items", "items that one pass scores", BATCH_SIZES)
        self.decoding_batch = histogram("decoding_batch_rows", "rows that get a token in one step", BATCH_SIZES)
        self.failed_passes = counter("failed_passes", "passes of a backbone that raised an exception")
        self.first_token = histogram(
            "time_to_first_token_seconds", "from queueing a request to its first token", REQUEST_SECONDS, "run"
        )
        self.token_seconds = histogram(
            "time_per_output_token_seconds", "seconds a token of a text, after its first one", TOKEN_SECONDS, "run"
        )

    def answered(self, run: str | None, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer; ``run`` is the name of a served model, None where the request names none."""
        self.requests.labels(run or NO_MODEL, endpoint, str(status)).inc()
        self.request_seconds.labels(run or NO_MODEL).observe(seconds)

    def wrote_row(self, run: str, prompt_tokens: int, new_tokens: int) -> None:
        """Count the tokens of a text that has ended."""
        self.tokens_read.labels(run).inc(prompt_tokens)
        self.tokens_written.labels(run).inc(new_tokens)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
