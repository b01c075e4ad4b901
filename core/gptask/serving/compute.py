"""From a request to the batcher and back: time limit, a full queue, a client that goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request

from gptask.serving.state import ServerState
from gptask.serving.work import Work, WritingWork

if TYPE_CHECKING:
    from gptask.model.engine.interface import DecodingRow


async def computed(state: ServerState, request: Request, work: Work) -> Any:
    """The result of a piece of work; it is dropped where the client goes away or the time is over."""
    work.deadline = min(work.deadline, time.monotonic() + state.options.timeout_s)
    state.batcher.submit(work)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(work.future), state.options.timeout_s)
    finally:
        if not work.future.done():
            work.cancel()


async def streamed(state: ServerState, request: Request, work: WritingWork) -> AsyncIterator[DecodingRow]:
    """Yield each row that got tokens since it was yielded last, and a last time after it has ended.

    Rows go on growing meanwhile: whoever takes ``finish`` for the end of the tokens must read it before ``new_ids``.
    Use it in `contextlib.aclosing`, so that breaking off drops the work at once. Raises the errors of `computed`.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    rows: dict[DecodingRow, None] = {}

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: the server ends
            loop.call_soon_threadsafe(changed.set)

    def note(row: DecodingRow) -> None:
        rows[row] = None
        wake()

    work.on_token = note
    work.deadline = min(work.deadline, time.monotonic() + state.options.timeout_s)
    state.batcher.submit(work)
    work.future.add_done_callback(lambda _: wake())
    left = asyncio.ensure_future(_client_left(request))
    left.add_done_callback(lambda _: changed.set())
    try:
        while not work.future.done() and not left.done():
            async with asyncio.timeout(work.deadline - time.monotonic()):
                await changed.wait()
            changed.clear()
            while rows:
                yield rows.popitem()[0]
        if left.done():
            raise ClientDisconnect
        work.future.result()
        while rows:
            yield rows.popitem()[0]
    finally:
        left.cancel()
        if not work.future.done():
            work.cancel()


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
