"""From a request to the batcher and back: time limit, a full queue, a client that goes away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request

from gptask.errors import UserError
from gptask.serving.batching.batcher import BatcherEnded, QueueFull
from gptask.serving.batching.work import Work, WorkExpired, WritingWork
from gptask.serving.http.http_errors import ApiError, internal_error, plugin_error
from gptask.serving.http.request_record import record_of
from gptask.serving.models.served_run import ServedRun
from gptask.serving.state import ServerState

if TYPE_CHECKING:
    from gptask.model.engine.interface import DecodingRow


async def computed(state: ServerState, request: Request, work: Work) -> Any:
    """The result of a piece of work; it is dropped where nobody waits for it any more.

    The request's body has been read: what else the request receives is that its client goes away. Raises
    `ClientDisconnect` then, and `ApiError`: 422 for what can never be computed, 429 where the queue is full, 503 where
    the time is over or the server ends, and 500 for any other fault.
    """
    async with _submitted(state, request, work) as ended:
        await ended.wait()
    return _result(state, request, work)


def refuse_if_full(state: ServerState) -> None:
    """Raise `ApiError` 429 where the queue is full, before a request costs anything."""
    try:
        state.batcher.require_room()
    except QueueFull as error:
        raise _queue_full(state, error) from None


async def streamed(state: ServerState, request: Request, work: WritingWork) -> AsyncIterator[DecodingRow]:
    """Yield each row that got tokens since it was yielded last, and a last time after it has ended.

    A client that reads slowly gets later and larger pieces; the batcher does not wait for it. Rows go on growing
    meanwhile: whoever takes ``finish`` for the end of the tokens must read it before ``new_ids``. Use it in
    `contextlib.aclosing`, so that breaking off drops the work at once. Raises the errors of `computed`.
    """
    changes = ChangedRows()
    work.on_token = changes.add
    async with _submitted(state, request, work, changes.news) as ended:
        while not ended.is_set():
            await changes.news.wait()
            changes.news.clear()
            for row in changes.take():
                yield row
    for row in changes.take():
        yield row
    _result(state, request, work)


class ChangedRows:
    """Rows that the batcher's thread has written and the event loop has not taken yet."""

    def __init__(self) -> None:
        self.news, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._rows: dict[DecodingRow, None] = {}
        self._lock = threading.Lock()  # held for moments only

    def add(self, row: DecodingRow) -> None:
        """Note a row; called by the batcher's thread."""
        with self._lock:
            first = not self._rows
            self._rows[row] = None
        if first:
            self._loop.call_soon_threadsafe(self.news.set)

    def take(self) -> list[DecodingRow]:
        """The rows that were noted since the last call."""
        with self._lock:
            rows, self._rows = list(self._rows), {}
        return rows


@asynccontextmanager
async def _submitted(
    state: ServerState, request: Request, work: Work, news: asyncio.Event | None = None
) -> AsyncIterator[asyncio.Event]:
    """Submit work; yield an event that is set, with the ``news``, when the work ends. At the exit it is dropped.

    Whatever is waited for ends the work: its result, the time limit, the client going away, the server's end.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        ended.set()
        if news:
            news.set()

    def wake_loop(_: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(wake)

    work.deadline = min(work.deadline, record_of(request).deadline)
    try:
        state.batcher.submit(work)
    except (UserError, QueueFull, BatcherEnded) as error:
        raise _api_error(state, request, work, error) from None
    work.future.add_done_callback(wake_loop)  # after the batcher's own, so that who wakes finds the work gone
    timer = loop.call_later(work.deadline - time.monotonic(), work.expire)  # even while the batcher is in a long pass
    watch = loop.create_task(_cancel_when_gone(request, work))
    try:
        yield ended
    finally:
        timer.cancel()
        watch.cancel()
        work.cancel()


async def _cancel_when_gone(request: Request, work: Work) -> None:
    """Cancel the work of a client that goes away, even while an answer is being sent to it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.cancel()


def _result(state: ServerState, request: Request, work: Work) -> Any:
    """The result of work that has ended."""
    if work.future.cancelled():
        raise ClientDisconnect
    if error := work.future.exception():
        raise _api_error(state, request, work, error) from None
    return work.future.result()


def _api_error(state: ServerState, request: Request, work: Work, error: BaseException) -> ApiError:
    """The answer to an exception; what went wrong inside is logged and not told."""
    later = {"Retry-After": str(state.batcher.retry_after())}
    if isinstance(error, UserError):
        return ApiError(422, str(error))
    if isinstance(error, QueueFull):
        return _queue_full(state, error)
    if isinstance(error, BatcherEnded):
        return ApiError(503, str(error), kind="server_error", code="server_ends", headers=later)
    if isinstance(error, WorkExpired):
        message = f"not finished within the {state.options.timeout_s:g} s that a request may take (timeout_s)"
        return ApiError(503, message, kind="timeout", code="timeout", headers=later)
    found = plugin_error(error, work.model) if isinstance(work.model, ServedRun) else error
    return found if isinstance(found, ApiError) else internal_error(found, record_of(request).id)


def _queue_full(state: ServerState, error: QueueFull) -> ApiError:
    later = {"Retry-After": str(state.batcher.retry_after())}
    return ApiError(429, str(error), kind="rate_limit_error", code="queue_full", headers=later)
