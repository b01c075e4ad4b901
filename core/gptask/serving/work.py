"""What the HTTP side asks of the batcher: a future for each piece of work.

The event loop's thread and helper threads make pieces of work; the batcher's thread computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptask.model.engine.interface import DecodingRow
    from gptask.model.heads import Head
    from gptask.serving.served_run import ServedModel


@dataclass(eq=False)
class Work:
    """A piece of work on one model; ``future`` gets its result, or the exception that ended it.

    After the ``deadline`` (of `time.monotonic`) it ends with `TimeoutError`.
    """

    model: ServedModel
    deadline: float = field(default=math.inf, kw_only=True)
    future: Future[Any] = field(default_factory=Future, kw_only=True)
    cancelled: bool = field(default=False, kw_only=True)

    def cancel(self) -> None:
        """Let the batcher drop it: nobody waits for the result any more."""
        self.cancelled = True
        self.future.cancel()


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
    return at once.
    """

    rows: Sequence[DecodingRow]
    on_token: Callable[[DecodingRow], None] | None = None


@dataclass(eq=False)
class WholeWork(Work):
    """What must run alone between two steps, such as a head that decodes in its own way; the result is the call's."""

    call: Callable[[], Any]
