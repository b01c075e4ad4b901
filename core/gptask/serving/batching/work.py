"""What the HTTP side asks of the batcher: a future for each piece of work.

The event loop's thread and helper threads make pieces of work; the batcher's thread computes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptask.model.engine.interface import DecodingRow
    from gptask.model.heads import Head
    from gptask.serving.models.served_run import ServedModel


class WorkExpired(TimeoutError):
    """A piece of work was not finished at its deadline."""


@dataclass(eq=False)
class Work:
    """A piece of work on one model; ``future`` gets its result, or the exception that ended it.

    After the ``deadline`` (of `time.monotonic`) it ends with `WorkExpired`, a `TimeoutError`. ``submitted`` and
    ``started`` are times of the same clock: when it was queued, and when the batcher began to compute it.
    """

    model: ServedModel
    deadline: float = field(default=math.inf, kw_only=True)
    future: Future[Any] = field(default_factory=Future, kw_only=True)
    cancelled: bool = field(default=False, kw_only=True)
    submitted: float = field(default=math.nan, kw_only=True)
    started: float | None = field(default=None, kw_only=True)

    def cancel(self) -> None:
        """Let the batcher drop it: nobody waits for the result any more."""
        self.cancelled = True
        self.future.cancel()

    @property
    def ended(self) -> bool:
        """Whether it has a result or an exception, or is cancelled: nothing of it needs to be computed any more."""
        return self.cancelled or self.future.done()

    def start(self) -> None:
        """Note that computing begins."""
        self.started = self.started or time.monotonic()

    def finish(self, result: Any) -> None:
        """End with a result, unless it has ended: the other side may cancel it at any moment."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End with an exception, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def expire(self) -> None:
        """End it because its time is over."""
        self.fail(WorkExpired("not finished at its deadline"))


@dataclass(eq=False)
class ScoringWork(Work):
    """Encoded items for a ``head`` that reads hidden states; the result is its output for each, in order."""

    items: Sequence[dict[str, Any]]
    head: Head

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return sum(item["length"] for item in self.items)


@dataclass(eq=False)
class WritingWork(Work):
    """Rows that are written token by token, the samples of one prompt or several prompts; the result is the rows.

    The batcher's thread calls ``on_token`` with each row that got tokens in a step or ended, after the step; it must
    return at once. An exception that it raises fails this work alone.
    """

    rows: Sequence[DecodingRow]
    on_token: Callable[[DecodingRow], None] | None = None


@dataclass(eq=False)
class WholeWork(Work):
    """What must run alone between two steps, such as a head that decodes in its own way; the result is the call's.

    One that ``continues`` a request is not refused where the queue is full: the request was let in.
    """

    call: Callable[[], Any]
    continues: bool = False
