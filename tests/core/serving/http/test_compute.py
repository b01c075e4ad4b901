"""From a request to the batcher and back, on an engine without a model."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from gptask.errors import UserError
from gptask.serving.batching.batcher import Batcher
from gptask.serving.batching.work import WholeWork
from gptask.serving.http.compute import computed, streamed
from gptask.serving.http.http_errors import INTERNAL_ERROR, ApiError
from gptask.serving.http.request_record import KEY, RequestRecord
from gptask.serving.prometheus import ServerMetrics
from starlette.requests import ClientDisconnect, Request

from tests.support.fake_engine import EchoHead, FakeBatch, FakeEngine, FakeModel, scoring, writing

LONG_WAIT = 60.0
SECRET = "a text of the request"


class Client:
    """A client whose request has been read, and who may go away."""

    def __init__(self, seconds: float = LONG_WAIT) -> None:
        self.gone = asyncio.Event()
        record = RequestRecord("id", time.monotonic() + seconds)
        self.request = Request({"type": "http", "headers": [], KEY: record}, self.receive)

    async def receive(self) -> dict[str, str]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def state() -> Iterator[Any]:
    batcher = Batcher(ServerMetrics(), max_waiting=2, kv_bytes=1000)
    yield SimpleNamespace(batcher=batcher, options=SimpleNamespace(timeout_s=LONG_WAIT))
    assert batcher.drain(LONG_WAIT)


def run(test: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(LONG_WAIT):
            return await test

    return asyncio.run(limited())


async def api_error(awaitable: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await awaitable
    return caught.value


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, LONG_WAIT)


def test_results_of_many_requests_at_once(state: Any, engine: FakeEngine) -> None:
    state.batcher.max_waiting = 100

    async def test() -> None:
        model = FakeModel(engine)
        works = [scoring(model, [number]) for number in range(50)]
        results = asyncio.gather(*(computed(state, Client().request, work) for work in works))
        state.batcher.start()
        assert await results == [[number] for number in range(50)]
        (row,) = await computed(state, Client().request, writing(model, 7))
        assert row.new_ids == [7] * 4

    run(test())


def test_a_full_queue_is_429_with_a_time_to_try_again(state: Any, engine: FakeEngine) -> None:
    async def test() -> None:
        model = FakeModel(engine)
        waiting = [asyncio.create_task(computed(state, Client().request, scoring(model, [n]))) for n in range(2)]
        await asyncio.sleep(0)
        error = await api_error(computed(state, Client().request, scoring(model, [2])))
        assert (error.status, error.code, error.headers) == (429, "queue_full", {"Retry-After": "1"})
        state.batcher.start()
        assert await asyncio.gather(*waiting) == [[0], [1]]

    run(test())


def test_a_text_that_can_never_fit_is_422(state: Any, engine: FakeEngine) -> None:
    error = run(api_error(computed(state, Client().request, writing(FakeModel(engine), 1, limit=1000))))  # type: ignore[arg-type]
    assert error.status == 422
    assert "kv_mb" in error.message


def test_the_time_limit_is_503_even_where_the_batcher_is_in_a_long_pass(state: Any, engine: FakeEngine) -> None:
    release, stuck = threading.Event(), threading.Event()
    state.options.timeout_s = 0.01
    engine.before_pass = lambda _: (stuck.set(), release.wait(LONG_WAIT))[0]
    state.batcher.start()

    async def test() -> None:
        error = await api_error(computed(state, Client(seconds=0.01).request, work))
        assert (error.status, error.kind) == (503, "timeout")
        assert error.message == "not finished within the 0.01 s that a request may take (timeout_s)"
        assert error.headers["Retry-After"] == "1"

    work = scoring(FakeModel(engine), [1])
    run(test())
    release.set()


def test_all_work_of_a_request_shares_its_time(state: Any, engine: FakeEngine) -> None:
    async def test() -> None:
        client = Client(seconds=-1)
        assert (await api_error(computed(state, client.request, scoring(FakeModel(engine), [1])))).status == 503

    run(test())


@pytest.mark.parametrize("how", ["client", "handler"])
def test_work_that_nobody_waits_for_is_dropped(state: Any, engine: FakeEngine, how: str) -> None:
    work, stepped = writing(FakeModel(engine), 1, limit=900), threading.Event()
    engine.before_step = lambda batch: until_cancelled(batch, stepped, work)
    state.batcher.start()

    async def test() -> None:
        client = Client()
        task = asyncio.create_task(computed(state, client.request, work))
        await until(stepped)
        if how == "client":
            client.gone.set()
        else:
            task.cancel()
        with pytest.raises(ClientDisconnect if how == "client" else asyncio.CancelledError):
            await task
        assert work.cancelled

    run(test())
    assert state.batcher.drain(LONG_WAIT)
    assert engine.steps <= 5, "its row leaves within two steps"


def until_cancelled(batch: FakeBatch, stepped: threading.Event, work: Any) -> None:
    """After three steps, the next one takes until the work is cancelled."""
    if batch.engine.steps == 3:
        cancelled = threading.Event()
        work.future.add_done_callback(lambda _: cancelled.set())
        stepped.set()
        assert cancelled.wait(LONG_WAIT)


def test_an_exception_is_500_without_any_detail_and_logged_once(
    state: Any, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(canaries: list[int]) -> list[Any]:
        raise KeyError(SECRET)

    state.batcher.start()
    with caplog.at_level(logging.DEBUG, "gptask"):
        error = run(api_error(computed_by(state, scoring(FakeModel(engine), [1], head=EchoHead(fail)))))
    assert (error.status, error.kind, error.code) == (500, "server_error", "internal_error")
    assert error.message == INTERNAL_ERROR
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert SECRET not in record.getMessage()
    assert "request id: internal error; please report it: KeyError" in record.getMessage()


async def computed_by(state: Any, work: Any) -> Any:
    return await computed(state, Client().request, work)


@pytest.mark.parametrize("problem", [SystemExit(), StopIteration(), TimeoutError(), asyncio.CancelledError()])
def test_whatever_is_raised_is_500(state: Any, engine: FakeEngine, problem: BaseException) -> None:
    def fail() -> None:
        raise problem

    state.batcher.start()
    error = run(api_error(computed_by(state, WholeWork(FakeModel(engine), fail))))
    assert (error.status, error.code) == (500, "internal_error")


def test_a_users_mistake_that_only_computing_finds_is_422(state: Any, engine: FakeEngine) -> None:
    def fail() -> None:
        raise UserError("the prompt is too long")

    state.batcher.start()
    error = run(api_error(computed_by(state, WholeWork(FakeModel(engine), fail))))
    assert (error.status, error.message) == (422, "the prompt is too long")


def test_a_server_that_ends_is_503(state: Any, engine: FakeEngine) -> None:
    async def test() -> None:
        waiting = asyncio.create_task(computed_by(state, scoring(FakeModel(engine), [1])))
        await asyncio.sleep(0)
        state.batcher.drain(0)
        for error in (await api_error(waiting), await api_error(computed_by(state, scoring(FakeModel(engine), [1])))):
            assert (error.status, error.code) == (503, "server_ends")

    run(test())


# --- streams ------------------------------------------------------------------------------------------------------


async def collected(state: Any, work: Any, each: Callable[[int], Any] | None = None) -> dict[int, list[int]]:
    """The new tokens of each row, as they are streamed; a row must come once more after its end."""
    tokens: dict[int, list[int]] = {place: [] for place in range(len(work.rows))}
    ended: set[int] = set()
    pieces = 0
    async with aclosing(streamed(state, Client().request, work)) as rows:  # type: ignore[type-var]
        async for row in rows:
            place, finish = work.rows.index(row), row.finish
            tokens[place] += row.new_ids[len(tokens[place]) :]
            ended |= {place} if finish else set()
            pieces += 1
            if each:
                await each(pieces)
    assert ended == set(tokens)
    return tokens


def test_a_stream_yields_every_token_as_it_comes(state: Any, engine: FakeEngine) -> None:
    state.batcher.start()
    works = [writing(FakeModel(engine), number, limit=100, rows=2) for number in range(4)]

    async def test() -> None:
        assert await asyncio.gather(*(collected(state, work) for work in works)) == [
            {0: [number] * 100, 1: [number] * 100} for number in range(4)
        ]

    state.batcher.max_waiting = 10
    run(test())


def test_the_first_token_comes_before_the_second_is_written(state: Any, engine: FakeEngine) -> None:
    seen = threading.Event()
    engine.before_step = lambda _: None if engine.steps != 1 else wait_for(seen)
    state.batcher.start()

    async def each(pieces: int) -> None:
        seen.set()

    assert run(collected(state, writing(FakeModel(engine), 5), each)) == {0: [5] * 4}


def wait_for(event: threading.Event) -> None:
    assert event.wait(LONG_WAIT)


def test_a_slow_reader_gets_larger_pieces_and_holds_nobody_up(state: Any, engine: FakeEngine) -> None:
    state.batcher.start()
    slow, pieces = writing(FakeModel(engine), 1, limit=300), list[int]()

    async def read_slowly(count: int) -> None:
        pieces.append(count)
        if count == 1:
            await asyncio.wrap_future(slow.future)

    assert run(collected(state, slow, read_slowly)) == {0: [1] * 300}
    assert len(pieces) <= 2, "all is written while the first piece is read"


def test_a_stream_that_is_broken_off_frees_its_rows(state: Any, engine: FakeEngine) -> None:
    work, stepped = writing(FakeModel(engine), 1, limit=900), threading.Event()
    engine.before_step = lambda batch: until_cancelled(batch, stepped, work)
    state.batcher.start()

    async def test() -> None:
        async with aclosing(streamed(state, Client().request, work)) as rows:  # type: ignore[type-var]
            async for _ in rows:
                break

    run(test())
    assert work.cancelled
    assert state.batcher.drain(LONG_WAIT)
    assert engine.steps <= 5


def test_a_client_that_goes_away_ends_its_stream(state: Any, engine: FakeEngine) -> None:
    work, stepped = writing(FakeModel(engine), 1, limit=900), threading.Event()
    engine.before_step = lambda batch: until_cancelled(batch, stepped, work)
    state.batcher.start()

    async def test() -> None:
        client = Client()
        async for _ in streamed(state, client.request, work):
            client.gone.set()

    with pytest.raises(ClientDisconnect):
        run(test())
    assert state.batcher.drain(LONG_WAIT)
    assert engine.steps <= 5


def test_a_fault_in_a_stream_is_told_after_what_was_written(state: Any, engine: FakeEngine) -> None:
    def fail(batch: FakeBatch) -> None:
        if engine.steps == 3:
            raise ValueError(SECRET)

    engine.before_step = fail
    state.batcher.start()
    work, tokens = writing(FakeModel(engine), 8, limit=50), list[int]()

    async def test() -> None:
        async for row in streamed(state, Client().request, work):
            tokens.extend(row.new_ids[len(tokens) :])

    assert run(api_error(test())).status == 500
    assert tokens == [8, 8, 8]
