"""The texts that are written on one backbone, in one decoding batch."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from gptask.serving.batching.failed_passes import FailedPasses
from gptask.serving.batching.work import WritingWork
from gptask.serving.prometheus import ServerMetrics

if TYPE_CHECKING:
    from gptask.model.engine.interface import DecodingBatch, DecodingRow, Engine

KEPT_TEXTS = 8  # whose keys and values stay for prompts that begin like them


class Writing:
    """Writing work: its rows that wait for memory, and those that are written, each with its bytes of keys and values.

    ``overtaken`` counts the bytes of rows that were admitted while the next one of these waited for memory.
    """

    def __init__(self, work: WritingWork, engine: Engine) -> None:
        self.work, self.engine = work, engine
        self.waiting = deque(work.rows)
        self.active: dict[DecodingRow, int] = {}
        self.overtaken = 0

    @property
    def next_bytes(self) -> int:
        """The bytes that the next row needs."""
        return self.engine.row_bytes(self.waiting[0])


class DecodingLane:
    """Rows of one engine's backbone, a token each in a step; ``row_bytes`` are reserved for their keys and values."""

    def __init__(self, engine: Engine, metrics: ServerMetrics, failed_passes: FailedPasses) -> None:
        self.engine, self.metrics, self.failed_passes = engine, metrics, failed_passes
        self.owners: dict[DecodingRow, Writing] = {}
        self.row_bytes = 0
        self._first_tokens: dict[DecodingRow, float] = {}  # when each row got its first token
        self.batch = self._new_batch()

    def _new_batch(self) -> DecodingBatch:
        return self.engine.decoding_batch(keep=KEPT_TEXTS)

    @property
    def bytes(self) -> int:
        """The bytes that are reserved for keys and values, and those of kept texts."""
        return self.row_bytes + self.batch.kept_bytes

    def admit(self, writing: Writing) -> None:
        """Take the next row of some work."""
        needed, row = writing.next_bytes, writing.waiting.popleft()
        writing.work.start()
        writing.active[row], writing.overtaken = needed, 0
        self.row_bytes += needed
        self.owners[row] = writing
        self.batch.enqueue([row])

    def leave(self, writing: Writing) -> None:
        """Drop the rows of work that has ended."""
        for row in list(writing.active):
            self.batch.leave(row)
            self._forget_row(row)

    def _forget_row(self, row: DecodingRow) -> None:
        writing = self.owners.pop(row)
        self.row_bytes -= writing.active.pop(row)
        self._first_tokens.pop(row, None)
        self.metrics.wrote_row(writing.work.model.name, len(row.prompt), len(row.new_ids))

    def read(self, max_tokens: int) -> None:
        """Read at most so many tokens of unread prompts; where that fails, so does the work whose prompts they are."""
        try:
            self.batch.read(max_tokens)
        except Exception as error:
            staying = {*self.batch.rows, *self.batch.unread}
            self._lose([row for row in self.owners if row not in staying], error)

    def step(self) -> None:
        """Write a token of each row.

        Where that fails, so does all work that is being written; unread prompts go to a new batch.
        """
        rows = self.batch.rows
        if not rows:
            return
        try:
            self.batch.step()
        except Exception as error:
            unread = self.batch.unread
            self.batch = self._new_batch()
            self.batch.enqueue(unread)
            self._lose(rows, error)
            return
        self.failed_passes.reset()
        self.metrics.decoding_batch.observe(len(rows))
        now = time.monotonic()
        for row in rows:
            self._advanced(row, now)

    def _lose(self, rows: list[DecodingRow], error: Exception) -> None:
        """Fail the work of rows that a pass has lost."""
        for row in rows:
            self.owners[row].work.fail(error)
            self._forget_row(row)
        self.failed_passes.add(error)

    def _advanced(self, row: DecodingRow, now: float) -> None:
        """Tell of a row's new token; a row that has ended leaves, and ends its work if it was the last one."""
        work, run = self.owners[row].work, self.owners[row].work.model.name
        if row not in self._first_tokens:
            self.metrics.first_token.labels(run).observe(now - work.submitted)
        first = self._first_tokens.setdefault(row, now)
        if row.finish and len(row.new_ids) > 1:
            self.metrics.token_seconds.labels(run).observe((now - first) / (len(row.new_ids) - 1))
        if work.on_token and not work.ended:
            try:
                work.on_token(row)
            except Exception as error:
                work.fail(error)
        if row.finish:
            writing = self.owners[row]
            self._forget_row(row)
            if not writing.waiting and not writing.active:
                work.finish(work.rows)
