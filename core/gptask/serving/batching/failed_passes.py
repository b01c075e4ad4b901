"""How many passes may fail one after the other before the server gives up."""

from __future__ import annotations

from gptask.serving.prometheus import ServerMetrics

MAX_IN_A_ROW = 8


class FailedPasses:
    """Counts the passes of a backbone that raised an exception without one that went well in between."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self.metrics, self.in_a_row = metrics, 0

    def add(self, error: Exception) -> None:
        """Count one; raises the error where memory ran out, and `RuntimeError` after too many in a row."""
        self.metrics.failed_passes.inc()
        self.in_a_row += 1
        if isinstance(error, MemoryError):
            raise error
        if self.in_a_row >= MAX_IN_A_ROW:
            raise RuntimeError(f"{self.in_a_row} passes failed one after the other") from error

    def reset(self) -> None:
        """Note a pass that went well."""
        self.in_a_row = 0
