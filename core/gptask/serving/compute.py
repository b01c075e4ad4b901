"""From a request to the batcher and back: time limit, a full queue, a client that goes away."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request

from gptask.serving.state import ServerState
from gptask.serving.work import Work


async def computed(state: ServerState, request: Request, work: Work) -> Any:
    """The result of a piece of work; it is dropped where the client goes away or the time is over."""
    work.deadline = min(work.deadline, time.monotonic() + state.options.timeout_s)
    state.batcher.submit(work)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(work.future), state.options.timeout_s)
    finally:
        if not work.future.done():
            work.cancel()
