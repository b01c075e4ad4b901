"""What is known of one request, for its log line, its metrics and its time limit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

KEY = "gptask.record"  # in the ASGI scope


@dataclass
class RequestRecord:
    """One request. Routes set ``run`` to the name of the model that answers, and add tokens read and written.

    ``deadline`` is of `time.monotonic`; ``body`` is the JSON of the body once it is read.
    """

    id: str
    deadline: float
    started: float = field(default_factory=time.monotonic)
    run: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    body: Any = None

    @property
    def seconds_left(self) -> float:
        """How long the request may still take, 0 where its time is over."""
        return max(0.0, self.deadline - time.monotonic())


def record_of(request: Request) -> RequestRecord:
    """The record of a request."""
    record: RequestRecord = request.scope[KEY]
    return record
