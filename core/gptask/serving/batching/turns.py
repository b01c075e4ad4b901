"""Lets a long computation in a thread of its own take turns with the batcher's passes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from gptask.serving.batching.work import WholeWork

if TYPE_CHECKING:
    from gptask.serving.models.served_run import ServedModel


class Turns:
    """A thread that calls `next` before each pass of the backbone computes between two steps of the batcher's thread.

    The batcher waits while a turn lasts: up to the following `next`, or to `end`. So an explanation of a hundred passes
    lets others go on after each one, and no pass runs beside another. ``submit`` queues work and returns a future that
    ends with it; whatever ends the work before its turn has come (its time limit, a client that goes away, the server's
    end) raises in `next`. Use it in a ``with`` block: at its end the batcher goes on.
    """

    turns = 0  # that have come

    def __init__(self, model: ServedModel, submit: Callable[[WholeWork], Future[Any]]) -> None:
        self.model, self.submit = model, submit
        self._over = threading.Event()  # of the turn that lasts, or lasted last
        self._over.set()

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def next(self) -> None:
        """End the turn that lasts, and wait for another one."""
        self.end()
        begun, over = threading.Event(), threading.Event()

        def wait_for_thread() -> None:
            begun.set()
            over.wait()

        self._over = over
        work = WholeWork(self.model, wait_for_thread, continues=self.turns > 0)
        future = self.submit(work)
        future.add_done_callback(lambda _: begun.set())
        begun.wait()
        if future.done():  # not by this turn, which is not over
            self.end()  # it may have begun all the same
            future.result()
            raise RuntimeError("the work of a turn ended before the turn")
        self.turns += 1

    def end(self) -> None:
        """Let the batcher go on."""
        self._over.set()
