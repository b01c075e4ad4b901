"""The texts that are written on one backbone, in one decoding batch."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from gptask.serving.failed_passes import FailedPasses
from gptask.serving.prometheus import ServerMetrics
from gptask.serving.work import WritingWork

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
        self._open_batch()

    def _open_batch(self) -> None:
        self.batch: DecodingBatch = self.engine.decoding_batch(keep=KEPT_TEXTS)
        self._kept = deque[int](maxlen=KEPT_TEXTS)  # the bytes of the rows that left last

    @property
    def kept_bytes(self) -> int:
        """The most bytes that the texts take which the batch keeps."""
        return sum(self._kept)

    @property
    def bytes(self) -> int:
        """The bytes that are reserved for keys and values, those of kept texts included."""
        return self.row_bytes + self.kept_bytes

    def forget_kept(self) -> None:
        """Drop the kept texts, whose memory a row needs."""
        self.batch.forget()
        self._kept.clear()

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
        self.row_bytes -= writing.active[row]
        self._kept.append(writing.active.pop(row))
        self._first_tokens.pop(row, None)
        self.metrics.wrote_row(writing.work.model.name, len(row.prompt), len(row.new_ids))

    def advance(self, prompt_tokens: int) -> None:
        """Read at most so many tokens of unread prompts, and write a token of each row.

        If either fails, so does all work in the batch; rows that come later go into a new one.
        """
        try:
            if self.batch.unread:
                self.batch.read(prompt_tokens)
            rows = self.batch.rows
            self.batch.step()
        except Exception as error:
            for writing in set(self.owners.values()):
                writing.work.fail(error)
                writing.active.clear()
            self.owners, self._first_tokens, self.row_bytes = {}, {}, 0
            self._open_batch()
            self.failed_passes.add(error)
            return
        self.failed_passes.reset()
        if rows:
            self.metrics.decoding_batch.observe(len(rows))
        now = time.monotonic()
        for row in rows:
            self._advanced(row, now)

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
