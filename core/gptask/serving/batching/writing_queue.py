"""Which texts are written when: rows are admitted while the memory for their keys and values suffices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from gptask.errors import UserError
from gptask.serving.batching.decoding_lane import DecodingLane, Writing
from gptask.serving.batching.failed_passes import FailedPasses
from gptask.serving.batching.work import WritingWork
from gptask.serving.prometheus import ServerMetrics

if TYPE_CHECKING:
    from gptask.model.engine.interface import Engine

MAX_ROWS = 128  # that are written at once: more would let everybody wait for a step


class WritingQueue:
    """Writing work that waits or is being written, on all backbones, in ``kv_bytes`` of keys and values.

    Next comes a row of the request that has the fewest rows in writing, then in order of arrival: requests of one row
    are served in their order, and one of many rows does not hold them up. Where its memory does not suffice, it waits,
    and others go past it, but only until they have taken as much memory as it needs: then what becomes free is its. So
    no memory lies idle behind a large row, and a large row does not starve.
    """

    def __init__(self, kv_bytes: int, metrics: ServerMetrics, failed_passes: FailedPasses) -> None:
        self.kv_bytes, self.metrics, self.failed_passes = kv_bytes, metrics, failed_passes
        self.writings: list[Writing] = []  # in order of arrival
        self.lanes: dict[Engine, DecodingLane] = {}
        self._arrived = 0
        self._settled = (0, 0, 0)  # what of the state below the latest admission left

    def __bool__(self) -> bool:
        return bool(self.writings)

    @property
    def rows(self) -> int:
        """How many texts are being written."""
        return sum(len(lane.owners) for lane in self.lanes.values())

    @property
    def bytes(self) -> int:
        """The bytes that are reserved for keys and values."""
        return sum(lane.bytes for lane in self.lanes.values())

    def require_fit(self, work: WritingWork) -> None:
        """Raise `UserError` for a row whose keys and values would never fit."""
        for row in work.rows:
            needed = work.model.backbone.engine.row_bytes(row)
            if needed > self.kv_bytes:
                raise UserError(
                    f"a text of {len(row.prompt)} prompt tokens and up to {row.limit} new ones needs "
                    f"{needed / 2**20:.1f} MB of keys and values; the server has kv_mb={self.kv_bytes / 2**20:g}: "
                    "shorten the prompt, or ask for fewer tokens"
                )

    def add(self, work: WritingWork) -> None:
        """Queue work."""
        self._arrived += 1
        if work.rows:
            self.writings.append(Writing(work, work.model.backbone.engine))
        else:
            work.finish(work.rows)

    def drop_ended(self) -> None:
        """Let the rows of work that is cancelled, expired or failed leave."""
        for writing in self.writings:
            if writing.work.ended and writing.active:
                self.lanes[writing.engine].leave(writing)
        self.writings = [writing for writing in self.writings if not writing.work.ended]

    def parts(self, prompt_tokens: int) -> list[Callable[[], None]]:
        """Admit rows; return what is to be computed for them now, on each backbone: first a part of the prompts that
        are unread, of at most so many tokens, then a step."""
        self._admit()
        lanes = [lane for lane in self.lanes.values() if lane.owners]
        reads = [partial(lane.read, prompt_tokens) for lane in lanes if lane.batch.unread]
        return [*reads, *(lane.step for lane in lanes)]

    def forget(self, engine: Engine) -> None:
        """Drop what is kept of the texts of an engine."""
        self.lanes.pop(engine, None)

    def measure(self) -> None:
        """Tell the metrics how many texts are being written, and what memory is reserved."""
        self.metrics.rows.set(self.rows)
        self.metrics.kv_bytes.set(self.bytes)

    def _admit(self) -> None:
        """Admit what fits, if anything has changed since nothing did."""
        if (self._arrived, len(self.writings), self.rows) == self._settled:
            return
        order = [(len(writing.active), place, writing) for place, writing in enumerate(self.writings)]
        order = [entry for entry in order if entry[-1].waiting]
        heapify(order)
        blocked: Writing | None = None  # the first one whose next row does not fit
        while order and self.rows < MAX_ROWS:
            active, place, writing = heappop(order)
            row_bytes = writing.next_bytes
            if blocked and blocked.overtaken + row_bytes > blocked.next_bytes:
                continue
            if not self._make_room(row_bytes):
                blocked = blocked or writing
                continue
            if blocked:
                blocked.overtaken += row_bytes
            self._lane(writing.engine).admit(writing)
            if writing.waiting:
                heappush(order, (active + 1, place, writing))
        self._settled = self._arrived, len(self.writings), self.rows

    def _make_room(self, row_bytes: int) -> bool:
        """Whether a row fits, after dropping the texts that are only kept if it needs their memory."""
        free = self.kv_bytes - self.bytes
        kept = sum(lane.batch.kept_bytes for lane in self.lanes.values())
        if free < row_bytes <= free + kept:
            for lane in self.lanes.values():
                lane.batch.forget()
        return row_bytes <= free + kept

    def _lane(self, engine: Engine) -> DecodingLane:
        if engine not in self.lanes:
            self.lanes[engine] = DecodingLane(engine, self.metrics, self.failed_passes)
        return self.lanes[engine]
