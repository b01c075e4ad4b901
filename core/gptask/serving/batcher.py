"""The thread that computes: rows enter and leave the decoding batch between steps, scoring runs in between."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

import torch

from gptask.data.datamodule import collate
from gptask.serving.prometheus import ServerMetrics
from gptask.serving.work import ScoringWork, WholeWork, Work, WritingWork


class QueueFull(Exception):
    """More work waits than the server takes."""


class Batcher:
    """Computes work in a thread of its own.

    ``max_waiting`` bounds the pieces of work that wait, ``kv_bytes`` the keys and values of rows that are written at
    once. ``on_death`` is called with what ended the thread, if anything does.
    """

    def __init__(
        self,
        metrics: ServerMetrics,
        max_waiting: int = 256,
        kv_bytes: int = 2**30,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.metrics, self.max_waiting, self.kv_bytes, self.on_death = metrics, max_waiting, kv_bytes, on_death
        self._waiting: queue.Queue[Work | Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue a piece of work; raises `QueueFull`, and `UserError` for rows that can never fit."""
        if self._waiting.qsize() >= self.max_waiting:
            raise QueueFull
        self._waiting.put(work)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function between two steps, such as one that loads or unloads an adapter."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._waiting.put(run)
        return future

    def drain(self, timeout: float) -> bool:
        """Take no more work, finish what is there, end the thread; whether it ended in ``timeout`` seconds."""
        self._waiting.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            if not isinstance(work, Work):
                work()
                continue
            if work.cancelled:
                continue
            with suppress(InvalidStateError):  # it is cancelled meanwhile
                try:
                    work.future.set_result(self._compute(work))
                except Exception as error:
                    work.future.set_exception(error)

    @torch.inference_mode()
    def _compute(self, work: Work) -> Any:
        if isinstance(work, WholeWork):
            return work.call()
        if isinstance(work, ScoringWork):
            batch = collate(work.items).to(work.model.backbone.device)
            needed = work.head.needed_positions(batch)
            return work.head.predict(work.model.backbone.hidden(batch.input_ids, batch.lengths, needed), batch)
        assert isinstance(work, WritingWork)
        decoding = work.model.backbone.engine.decoding_batch()
        decoding.enqueue(work.rows)
        while decoding.read(256) or decoding.rows:
            rows = decoding.rows
            decoding.step()
            if work.on_token:
                for row in rows:
                    work.on_token(row)
        return work.rows
