"""The thread that computes: rows enter and leave the decoding batch between steps, scoring runs in between."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from math import ceil
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from gptask.serving.batching.failed_passes import FailedPasses
from gptask.serving.batching.scoring_queue import ScoringQueue
from gptask.serving.batching.work import ScoringWork, WholeWork, Work, WritingWork
from gptask.serving.batching.writing_queue import WritingQueue
from gptask.serving.prometheus import ServerMetrics

if TYPE_CHECKING:
    from gptask.model.engine.interface import Engine

log = logging.getLogger("gptask")
SCORING_TOKENS = 1024  # that are scored in a round: a CPU reads about as many at its best speed
PROMPT_TOKENS = 256  # of unread prompts that are read in a round
RECENT = 64  # pieces of work whose durations tell how long one takes now


class QueueFull(Exception):
    """More work waits than the server takes."""


class BatcherEnded(Exception):
    """The thread takes no more work, or ended before this work was finished."""


class Batcher:
    """Computes work in a thread of its own, in rounds.

    A round runs the functions of `call`; then it reads up to `PROMPT_TOKENS` of unread prompts, writes a token of each
    row, and runs one piece of whole work. Before each of these it drops work that nobody waits for or whose time is
    over, and scores items: up to `SCORING_TOKENS` in the round. So what is short never waits for what is long.

    ``max_waiting`` bounds the pieces of work that wait to be begun, ``kv_bytes`` the keys and values of rows that are
    written at once. ``on_death`` is called, in the thread, with the exception that ended it.
    """

    def __init__(
        self,
        metrics: ServerMetrics,
        max_waiting: int = 256,
        kv_bytes: int = 2**30,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.metrics, self.max_waiting, self.on_death = metrics, max_waiting, on_death
        failed_passes = FailedPasses(metrics)
        self._scoring = ScoringQueue(metrics, failed_passes)
        self._writing = WritingQueue(kv_bytes, metrics, failed_passes)
        self._whole = deque[WholeWork]()
        self._changed = threading.Condition()  # guards the next four
        self._arrivals: list[Work] = []
        self._calls: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._refusal: str | None = None  # why no more work is taken
        self._thread_ended = False
        self._open: dict[Future[Any], Work] = {}  # submitted and not ended
        self._durations = deque[float](maxlen=RECENT)
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.active.set_function(lambda: self.active)
        metrics.kv_limit.set(kv_bytes)

    # --- from any thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue a piece of work, without waiting.

        Raises `QueueFull`, `BatcherEnded` once the server ends, and `UserError` for rows that can never fit.
        """
        if isinstance(work, WritingWork):
            self._writing.require_fit(work)
        with self._changed:
            if self._refusal:
                raise BatcherEnded(self._refusal)
            if not (isinstance(work, WholeWork) and work.continues):
                self.require_room()
            work.submitted = time.monotonic()
            self._open[work.future] = work
            self._arrivals.append(work)
            self._changed.notify()
        work.future.add_done_callback(self._ended)

    def require_room(self) -> None:
        """Raise `QueueFull` where `submit` would."""
        if (waiting := self.waiting) >= self.max_waiting:
            raise QueueFull(f"{waiting} requests wait already: try again later")

    def _ended(self, future: Future[Any]) -> None:
        work = self._open.pop(future)
        if not future.cancelled() and not future.exception():
            self._durations.append(time.monotonic() - work.submitted)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function between two steps, such as one that loads or unloads an adapter."""
        future: Future[Any] = Future()
        with self._changed:
            if self._thread_ended:
                raise BatcherEnded(self._refusal)
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def forget(self, engine: Engine) -> Future[Any]:
        """Drop what is kept of the texts of a backbone that nobody uses any more: it would keep the weights, too."""
        return self.call(lambda: self._writing.forget(engine))

    @property
    def waiting(self) -> int:
        """How many pieces of work wait to be begun."""
        return sum(work.started is None for work in tuple(self._open.values()))

    @property
    def active(self) -> int:
        """How many pieces of work are begun and not finished."""
        return sum(work.started is not None for work in tuple(self._open.values()))

    def retry_after(self) -> int:
        """The seconds that recent work took from `submit` to its result, at least 1: when to try again."""
        return max(1, ceil(fmean(tuple(self._durations) or (0.0,))))

    def drain(self, timeout: float) -> bool:
        """Take no more work, finish what is there, end the thread; whether it ended in ``timeout`` seconds.

        What is not finished by then fails with `BatcherEnded`.
        """
        with self._changed:
            self._refusal = self._refusal or "the server is ending and takes no more requests"
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        ended = not self._thread.is_alive()
        self._fail_open(BatcherEnded(f"the server is ending and did not finish this request within {timeout:g} s"))
        return ended

    def _fail_open(self, error: BatcherEnded) -> None:
        """Fail all work, and all calls that have not run."""
        for work in tuple(self._open.values()):
            work.fail(error)
        with self._changed:
            calls, self._calls = self._calls, []
        for future, _ in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        death: BaseException | None = None
        try:
            while self._wait():
                self._round()
        except BaseException as error:
            death = error
            log.error("the thread that computes ended by %s: %s", type(error).__name__, error)
            log.debug("the thread that computes", exc_info=error)
        reason = (
            "the server has ended" if death is None else f"the server failed: {type(death).__name__} while computing"
        )
        with self._changed:
            self._refusal, self._thread_ended = reason, True
        self._fail_open(BatcherEnded(reason))
        if death is not None and self.on_death:
            self.on_death(death)

    def _wait(self) -> bool:
        """Wait until there is something to do; return whether there is, or will be."""
        with self._changed:
            while not (self._calls or self._open_work() or self._refusal):
                self._changed.wait()
            return bool(self._calls or self._open_work())

    def _open_work(self) -> bool:
        return bool(self._arrivals or self._scoring or self._writing or self._whole)

    def _round(self) -> None:
        with self._changed:
            calls, self._calls = self._calls, []
        for future, function in calls:
            self._call(future, function)
        self._take_in()
        with torch.inference_mode():
            parts = [*self._writing.parts(PROMPT_TOKENS), *([self._compute_whole] if self._whole else [])]
            left, share = SCORING_TOKENS, SCORING_TOKENS // max(1, len(parts))
            for part in parts or [lambda: None]:
                if left > 0:
                    left -= self._scoring.compute(share)
                part()
                self._take_in()
        self._writing.measure()

    def _take_in(self) -> None:
        """Queue what has been submitted, and drop what has ended."""
        with self._changed:
            arrivals, self._arrivals = self._arrivals, []
        for work in arrivals:
            self._add(work)
        self._drop_ended()

    def _call(self, future: Future[Any], function: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:  # it is the caller's
            future.set_exception(error)
        else:
            future.set_result(result)

    def _add(self, work: Work) -> None:
        if isinstance(work, ScoringWork):
            self._scoring.add(work)
        elif isinstance(work, WritingWork):
            self._writing.add(work)
        else:
            assert isinstance(work, WholeWork), f"no kind of work: {type(work).__name__}"
            self._whole.append(work)

    def _drop_ended(self) -> None:
        """Drop work whose time is over, and forget all that has ended."""
        now = time.monotonic()
        for work in tuple(self._open.values()):
            if now > work.deadline:
                work.expire()
        self._scoring.drop_ended()
        self._writing.drop_ended()
        self._whole = deque(work for work in self._whole if not work.ended)

    def _compute_whole(self) -> None:
        if not self._whole:  # dropped since the round began
            return
        work = self._whole.popleft()
        work.start()
        try:
            work.finish(work.call())
        except BaseException as error:  # a plugin raises what it likes, even SystemExit
            work.fail(error)
