"""The batcher on an engine without a model: order, fairness, faults and ends, all counted in passes, never in time."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from gptask.errors import UserError
from gptask.model.engine.interface import DecodingRow
from gptask.serving.batching.batcher import PROMPT_TOKENS, SCORING_TOKENS, Batcher, BatcherEnded, QueueFull
from gptask.serving.batching.failed_passes import MAX_IN_A_ROW
from gptask.serving.batching.work import ScoringWork, WholeWork, Work, WorkExpired, WritingWork
from gptask.serving.batching.writing_queue import MAX_ROWS
from gptask.serving.prometheus import ServerMetrics

from tests.support.fake_engine import EchoHead, FakeBatch, FakeEngine, FakeModel, item, scoring, writing

LONG_WAIT = 60  # seconds after which something hangs
Start = Callable[..., Batcher]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def batcher_of() -> Iterator[Start]:
    """Batchers that are ended with the test; ``start=False`` leaves what is submitted in the queue."""
    batchers: list[Batcher] = []

    def make(*, start: bool = True, **options: Any) -> Batcher:
        batchers.append(Batcher(ServerMetrics(), **options))
        if start:
            batchers[-1].start()
        return batchers[-1]

    yield make
    for batcher in batchers:
        assert batcher.drain(LONG_WAIT)


def result(work: Work) -> Any:
    return work.future.result(LONG_WAIT)


def error(work: Work) -> BaseException | None:
    return work.future.exception(LONG_WAIT)


def written(work: WritingWork) -> list[list[int]]:
    return [row.new_ids for row in result(work)]


# --- one batch for many -------------------------------------------------------------------------------------------


def test_items_of_many_requests_runs_and_heads_are_one_pass(engine: FakeEngine, batcher_of: Start) -> None:
    batcher = batcher_of(start=False)
    works = [scoring(FakeModel(engine, number), range(10 * number, 10 * number + 5)) for number in (1, 2, 3)]
    works.append(ScoringWork(works[0].model, [item([1, 77])], EchoHead(lambda canaries: [-c for c in canaries])))
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert [result(work) for work in works] == [[*range(10, 15)], [*range(20, 25)], [*range(30, 35)], [-77]]
    assert engine.passes == [16]


def test_work_without_items_or_rows_ends_at_once(engine: FakeEngine, batcher_of: Start) -> None:
    model, batcher = FakeModel(engine), batcher_of()
    empty_scoring, empty_writing = scoring(model, []), writing(model, 1, rows=0)
    for work in (empty_scoring, empty_writing):
        batcher.submit(work)
    assert result(empty_scoring) == []
    assert list(result(empty_writing)) == []


def test_a_pass_is_bounded_and_wastes_few_pads_and_a_longer_item_goes_alone(
    engine: FakeEngine, batcher_of: Start
) -> None:
    draw, model = random.Random(0), FakeModel(engine)
    batcher = batcher_of(start=False)
    lengths = [draw.choice([5, 20, 60, 300]) for _ in range(200)] + [SCORING_TOKENS + 500]
    draw.shuffle(lengths)
    work = ScoringWork(model, [item([0] * (n - 1) + [1000 + place]) for place, n in enumerate(lengths)], EchoHead())
    batcher.submit(work)
    batcher.start()
    assert result(work) == [1000 + place for place in range(len(lengths))]
    assert sum(engine.passes) == len(lengths)
    assert [n for n in engine.pass_tokens if n > SCORING_TOKENS] == [SCORING_TOKENS + 500]
    assert sum(engine.pass_tokens) < 1.15 * sum(lengths)


def test_backbones_are_served_in_one_loop(batcher_of: Start) -> None:
    engines = [FakeEngine(), FakeEngine()]
    batcher, models = batcher_of(start=False), [FakeModel(engine) for engine in engines]
    texts, labels = [writing(model, 7, limit=5) for model in models], [scoring(model, [8, 9]) for model in models]
    for work in [*texts, *labels]:
        batcher.submit(work)
    batcher.start()
    assert [written(text) for text in texts] == [[[7] * 5]] * 2
    assert [result(label) for label in labels] == [[8, 9]] * 2
    assert [engine.steps for engine in engines] == [5, 5]
    assert [engine.passes for engine in engines] == [[2], [2]]


def test_whole_work_and_calls_run_between_steps(engine: FakeEngine, batcher_of: Start) -> None:
    model, batcher, seen = FakeModel(engine), batcher_of(start=False), list[Any]()
    text = writing(model, 3, limit=9)
    wholes = [WholeWork(model, lambda: seen.append(engine.steps)) for _ in range(3)]
    for work in [text, *wholes]:
        batcher.submit(work)
    call = batcher.call(lambda: (seen.append("call"), threading.current_thread().name)[1])
    failing = batcher.call(lambda: 1 // 0)
    batcher.start()
    assert call.result(LONG_WAIT) == "batcher"
    with pytest.raises(ZeroDivisionError):
        failing.result(LONG_WAIT)
    for whole in wholes:
        result(whole)
    assert seen == ["call", 1, 2, 3]  # one in a round
    assert written(text) == [[3] * 9]


# --- fairness -----------------------------------------------------------------------------------------------------


def test_a_label_waits_neither_for_texts_nor_for_long_prompts(engine: FakeEngine, batcher_of: Start) -> None:
    model, batcher = FakeModel(engine), batcher_of(start=False)
    texts = [writing(model, 100 + number, limit=60) for number in range(16)]
    long_prompt = writing(model, 99, prompt=40 * PROMPT_TOKENS)
    label, steps = scoring(model, [5]), list[int]()

    def before_step(batch: FakeBatch) -> None:
        if engine.steps == 10:
            assert batch.unread, "the long prompt is still being read"
            batcher.submit(label)
            label.future.add_done_callback(lambda _: steps.append(engine.steps))

    engine.before_step = before_step
    for work in [*texts, long_prompt]:
        batcher.submit(work)
    batcher.start()
    assert result(label) == [5]
    assert [written(text) for text in texts] == [[[100 + number] * 60] for number in range(16)]
    assert written(long_prompt) == [[99] * 4]
    assert batcher.drain(LONG_WAIT)  # a future has its result before its callbacks run
    assert steps == [11]  # before the next step
    assert max(engine.batches[0].reads) <= PROMPT_TOKENS


@pytest.mark.parametrize("kind", ["read", "step", "whole"])
def test_a_label_that_comes_during_a_part_of_a_round_is_scored_before_the_next_part(
    engine: FakeEngine, batcher_of: Start, kind: str
) -> None:
    model, batcher, parts = FakeModel(engine), batcher_of(start=False), list[str]()
    label = scoring(model, [5])

    def note(part: str) -> None:
        parts.append(part)
        if part == kind and label not in batcher._open.values() and not label.future.done():
            batcher.submit(label)

    engine.before_read = lambda _: note("read")
    engine.before_step = lambda _: note("step")
    engine.before_pass = lambda _: note("label")
    wholes = [WholeWork(model, lambda: note("whole")) for _ in range(3)]
    for work in [writing(model, 1, limit=20), writing(model, 2, prompt=9 * PROMPT_TOKENS), *wholes]:
        batcher.submit(work)
    batcher.start()
    assert result(label) == [5]
    assert batcher.drain(LONG_WAIT)
    assert parts[parts.index("label") - 1] == kind
    assert {part: parts.count(part) for part in ("label", "whole")} == {"label": 1, "whole": 3}


def test_labels_between_the_parts_of_a_round_take_no_more_than_those_of_one_pass(
    engine: FakeEngine, batcher_of: Start
) -> None:
    model, batcher, in_rounds = FakeModel(engine), batcher_of(start=False), [0]
    engine.before_step = lambda _: in_rounds.append(0)

    def note(ids: Any) -> None:
        in_rounds[-1] += ids.numel()

    engine.before_pass = note
    labels = [scoring(model, range(40), length=length) for length in (60, 600, SCORING_TOKENS, 20) * 3]
    texts = [writing(model, 3, limit=60), writing(model, 2, prompt=60 * PROMPT_TOKENS)]
    for work in [*texts, *labels]:
        batcher.submit(work)
    batcher.start()
    assert [result(label) for label in labels] == [[*range(40)]] * 12
    full = in_rounds[1:50]  # a label that is longer than its share is scored alone
    assert max(full) <= 1.6 * SCORING_TOKENS
    assert sum(full) >= 0.8 * SCORING_TOKENS * len(full)


def test_labels_without_end_do_not_starve_a_text(engine: FakeEngine, batcher_of: Start) -> None:
    model, batcher = FakeModel(engine), batcher_of(start=False)
    text, labels = writing(model, 3, limit=20), list[ScoringWork]()

    def more_labels(_: Any) -> None:
        if not text.future.done():
            labels.extend(scoring(model, range(40), length=60) for _ in range(2))  # more than a round's tokens
            batcher.submit(labels[-1])
            batcher.submit(labels[-2])

    engine.before_pass = more_labels
    batcher.submit(text)
    batcher.submit(scoring(model, range(3)))
    rounds: list[int] = []
    text.future.add_done_callback(lambda _: rounds.append(len(engine.passes)))
    batcher.max_waiting = 10_000
    batcher.start()
    assert written(text) == [[3] * 20]
    assert all(result(label) == [*range(40)] for label in labels)
    assert batcher.drain(LONG_WAIT)
    assert sum(engine.pass_tokens[: rounds[0]]) <= 21 * SCORING_TOKENS


def test_a_large_request_does_not_hold_up_small_ones(engine: FakeEngine, batcher_of: Start) -> None:
    model, batcher = FakeModel(engine), batcher_of(start=False)
    large, small, passes = scoring(model, range(256), length=64), list[ScoringWork](), list[int]()

    def small_requests(_: Any) -> None:
        if len(engine.passes) in (2, 5):
            small.extend(scoring(model, [300 + number], length=64) for number in range(3))
            for work in small[-3:]:
                batcher.submit(work)
                now = len(engine.passes)
                work.future.add_done_callback(lambda _, now=now: passes.append(len(engine.passes) - now))
            assert not large.future.done()

    engine.before_pass = small_requests
    batcher.submit(large)
    batcher.start()
    assert result(large) == [*range(256)]
    assert [result(work) for work in small] == [[300], [301], [302]] * 2
    assert batcher.drain(LONG_WAIT)
    assert passes == [2] * 6, "they are in the pass after the one in which they came"


def test_small_rows_pass_a_large_one_that_waits_until_they_took_its_share(
    engine: FakeEngine, batcher_of: Start
) -> None:
    model, batcher = FakeModel(engine), batcher_of(start=False, kv_bytes=100)
    first, large = writing(model, 1, prompt=30, limit=30), writing(model, 2, prompt=40, limit=40)
    small = [writing(model, 10 + number, prompt=5, limit=5) for number in range(12)]
    ends: list[Any] = []
    for name, work in [("first", first), ("large", large), *enumerate(small)]:
        batcher.submit(work)
        work.future.add_done_callback(lambda _, name=name: ends.append(name))
    begun: dict[int, int] = {}

    def before_step(batch: FakeBatch) -> None:
        assert batch.bytes() <= 100
        for row in batch.rows:
            begun.setdefault(row.prompt[-1], engine.steps)

    engine.before_step = before_step
    batcher.start()
    for work in [first, large, *small]:
        result(work)
    passed = [number for number in range(12) if begun[10 + number] < begun[2]]
    assert passed == [*range(8)], "8 rows of 10 bytes pass the one of 80 bytes, the others wait for it"
    assert begun[10] == 0, "the memory beside the first row is not left idle"


def test_a_request_of_many_rows_does_not_hold_up_one_of_one_row(engine: FakeEngine, batcher_of: Start) -> None:
    model, batcher = FakeModel(engine), batcher_of(start=False, kv_bytes=40)
    many, one = writing(model, 1, prompt=5, limit=5, rows=20), writing(model, 2, prompt=5, limit=5)
    ends: list[str] = []
    for name, work in (("many", many), ("one", one)):
        batcher.submit(work)
        work.future.add_done_callback(lambda _, name=name: ends.append(name))
    batcher.start()
    assert written(many) == [[1] * 5] * 20
    assert batcher.drain(LONG_WAIT)
    assert ends == ["one", "many"]
    assert engine.batches[0].most_bytes <= 40


def test_a_step_has_a_bounded_number_of_rows(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model, rows = batcher_of(start=False), FakeModel(engine), list[int]()
    engine.before_step = lambda batch: rows.append(len(batch.rows))
    work = writing(model, 1, limit=2, prompt=1, rows=MAX_ROWS + 50)
    batcher.submit(work)
    batcher.start()
    assert written(work) == [[1] * 2] * (MAX_ROWS + 50)
    assert rows == [MAX_ROWS, MAX_ROWS, 50, 50]


# --- memory and queue ---------------------------------------------------------------------------------------------


def test_keys_and_values_never_take_more_than_allowed(batcher_of: Start) -> None:
    engines, draw = [FakeEngine(), FakeEngine()], random.Random(1)
    batcher = batcher_of(start=False, kv_bytes=200)
    for engine in engines:
        engine.before_step = lambda _: None if sum(b.bytes() for e in engines for b in e.batches) <= 200 else 1 // 0
    works = [
        writing(FakeModel(draw.choice(engines)), n, draw.randint(1, 60), draw.randint(1, 60), draw.randint(1, 3))
        for n in range(100)
    ]
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert all(written(work) == [[n] * work.rows[0].limit] * len(work.rows) for n, work in enumerate(works))
    assert "gptask_kv_cache_limit_bytes 200.0" in batcher.metrics.exposition().decode()


def test_rows_that_can_never_fit_are_refused_at_once(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(kv_bytes=2**20), FakeModel(engine)
    with pytest.raises(UserError, match=r"1048570 prompt tokens and up to 7 new ones needs 1.0 MB.*kv_mb=1"):
        batcher.submit(writing(model, 1, limit=7, prompt=2**20 - 6))
    fitting = writing(model, 1, limit=6, prompt=2**20 - 6)
    batcher.submit(fitting)
    assert written(fitting) == [[1] * 6]


def test_a_full_queue_refuses_the_next_request(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False, max_waiting=3), FakeModel(engine)
    works = [scoring(model, range(50)), writing(model, 1, rows=50), WholeWork(model, lambda: 5)]
    for work in works:
        batcher.submit(work)
    assert (batcher.waiting, batcher.active, batcher.retry_after()) == (3, 0, 1)
    with pytest.raises(QueueFull, match="3 requests wait already"):
        batcher.submit(scoring(model, [1]))
    works[2].cancel()
    assert batcher.waiting == 2, "what is cancelled makes room at once"
    batcher.submit(scoring(model, [1]))
    counts: list[tuple[int, int]] = []
    engine.before_step = lambda _: counts.append((batcher.waiting, batcher.active))
    batcher.start()
    result(works[1])
    assert counts[0] == (0, 1)


def test_retry_after_is_what_recent_work_took(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    for seconds in (2, 3):
        work = scoring(model, [1])
        batcher.submit(work)
        work.submitted -= seconds
    batcher.start()
    result(work)
    assert batcher.retry_after() == 3


# --- work that nobody waits for -----------------------------------------------------------------------------------


def test_a_cancelled_row_leaves_within_two_steps(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    work, other = writing(model, 1, limit=50), writing(model, 2, limit=50)
    waiting = writing(model, 3, limit=50, prompt=10**4)
    rows: list[int] = []

    def before_step(batch: FakeBatch) -> None:
        rows.append(len(batch.rows))
        if engine.steps == 5:
            work.cancel()
            waiting.cancel()

    engine.before_step = before_step
    for each in (work, other, waiting):
        batcher.submit(each)
    batcher.start()
    assert written(other) == [[2] * 50]
    assert rows == [2] * 6 + [1] * 44
    assert not engine.batches[0].unread
    assert engine.steps == 50


def test_expired_work_ends_with_a_timeout_and_its_row_leaves(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    late = writing(model, 1, limit=50)
    works = [scoring(model, [1]), writing(model, 1), WholeWork(model, lambda: 1)]
    for work in [late, *works]:
        batcher.submit(work)
    for work in works:
        work.deadline = time.monotonic() - 1

    def before_step(batch: FakeBatch) -> None:
        if engine.steps == 3:
            late.deadline = time.monotonic() - 1

    engine.before_step = before_step
    batcher.start()
    for work in [late, *works]:
        assert isinstance(error(work), WorkExpired)
    assert batcher.drain(LONG_WAIT)
    assert (engine.steps, engine.passes) == (4, [])


# --- faults -------------------------------------------------------------------------------------------------------


def guilty(canaries: list[int]) -> list[Any]:
    if 13 in canaries:
        raise ZeroDivisionError("unlucky")
    return canaries[1:] if 14 in canaries else exit_for(canaries)


def exit_for(canaries: list[int]) -> list[Any]:
    if 15 in canaries:
        raise SystemExit("a plugin that ends the process")
    return canaries


def test_what_a_head_raises_fails_the_guilty_request_alone(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model, head = batcher_of(start=False), FakeModel(engine), EchoHead(guilty)
    works = {canary: scoring(model, [canary, canary + 100], head=head) for canary in range(10, 20)}
    other = scoring(FakeModel(engine, 1), [13])
    for work in [*works.values(), other]:
        batcher.submit(work)
    batcher.start()
    assert result(other) == [13]
    for canary, work in works.items():
        if canary not in (13, 14, 15):
            assert result(work) == [canary, canary + 100]
    assert isinstance(error(works[13]), ZeroDivisionError)
    assert "EchoHead.predict returned 1 outputs for 2 sequences" in str(error(works[14]))
    assert isinstance(error(works[15]), SystemExit)
    assert engine.passes == [21], "the states are not computed again"


def test_what_a_head_needs_may_fail_too(engine: FakeEngine, batcher_of: Start) -> None:
    class Needy(EchoHead):
        def needed_positions(self, batch: Any) -> Any:
            assert 13 not in batch.input_ids
            return None

    batcher, model, head = batcher_of(start=False), FakeModel(engine), Needy()
    bad, good = scoring(model, [13], head=head), scoring(model, [12], length=9, head=head)
    for work in (bad, good, scoring(model, [11])):
        batcher.submit(work)
    batcher.start()
    assert result(good) == [12]
    assert isinstance(error(bad), AssertionError)


def test_an_item_that_breaks_a_shared_pass_fails_its_request_alone(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    works = [scoring(model, [canary]) for canary in range(10, 40)]

    def break_on_13(ids: Any) -> None:
        if 13 in ids:
            raise IndexError("index out of range")

    engine.before_pass = break_on_13
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert isinstance(error(works[3]), IndexError)
    assert [result(work) for work in works if work is not works[3]] == [[c] for c in range(10, 40) if c != 13]


def test_a_step_that_fails_fails_its_rows_and_the_next_ones_are_written(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    works = [writing(model, number, rows=2) for number in range(3)]

    def fail_once(batch: FakeBatch) -> None:
        if engine.steps == 2 and len(engine.batches) == 1:
            raise ValueError("a broken step")

    engine.before_step = fail_once
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert [str(error(work)) for work in works] == ["a broken step"] * 3
    again = writing(model, 5)
    batcher.submit(again)
    assert written(again) == [[5] * 4]
    assert len(engine.batches) == 2


def test_a_prompt_that_fails_to_be_read_fails_its_request_alone(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    works = [writing(model, number, rows=2) for number in range(5)]

    def fail_on_3(row: DecodingRow) -> None:
        if row.prompt[-1] == 3:
            raise ValueError("a broken prompt")

    engine.before_read = fail_on_3
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert str(error(works[3])) == "a broken prompt"
    assert [written(work) for work in works if work is not works[3]] == [[[n] * 4] * 2 for n in (0, 1, 2, 4)]
    assert len(engine.batches) == 1


def test_unread_prompts_survive_a_step_that_fails(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    lost, unread = writing(model, 1, limit=50), writing(model, 2, prompt=10 * PROMPT_TOKENS)

    def fail_once(batch: FakeBatch) -> None:
        if engine.steps == 2 and len(engine.batches) == 1:
            raise ValueError("a broken step")

    engine.before_step = fail_once
    for work in (lost, unread):
        batcher.submit(work)
    batcher.start()
    assert str(error(lost)) == "a broken step"
    assert written(unread) == [[2] * 4]


def test_on_token_sees_every_step_and_its_fault_is_its_own_works(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model, seen = batcher_of(start=False), FakeModel(engine), list[tuple[int, str | None]]()

    def fail(row: Any) -> None:
        raise RuntimeError("the listener failed")

    watched = writing(model, 1, limit=3, on_token=lambda row: seen.append((len(row.new_ids), row.finish)))
    failing = writing(model, 2, rows=3, limit=50, on_token=fail)
    for work in (watched, failing):
        batcher.submit(work)
    batcher.start()
    assert written(watched) == [[1] * 3]
    assert seen == [(1, None), (2, None), (3, "length")]
    assert str(error(failing)) == "the listener failed"
    assert batcher.drain(LONG_WAIT)
    assert engine.steps == 3, "its rows have left"


def test_a_pass_that_runs_out_of_memory_is_computed_in_parts_and_no_request_fails(
    engine: FakeEngine, batcher_of: Start
) -> None:
    batcher, sizes = batcher_of(start=False), list[int]()

    def little_memory(ids: torch.Tensor) -> None:
        sizes.append(ids.numel())
        if ids.numel() > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine.before_pass = little_memory
    works = [scoring(FakeModel(engine, number), range(10 * number, 10 * number + 9)) for number in (1, 2)]
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert [result(work) for work in works] == [[*range(10, 19)], [*range(20, 29)]]
    failed = sum(size > 30 for size in sizes)
    batcher.submit(later := scoring(FakeModel(engine, 3), range(30, 39)))
    assert result(later) == [*range(30, 39)]
    assert sum(size > 30 for size in sizes) == failed, "later passes are small from the start"
    batcher.submit(large := scoring(FakeModel(engine, 4), [41], length=40))
    assert isinstance(error(large), torch.OutOfMemoryError)


def raise_error(problem: BaseException) -> None:
    raise problem


@pytest.mark.parametrize("problem", [MemoryError("no memory"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["pass", "step"])
def test_what_ends_the_thread_fails_all_that_waits_and_is_told(
    engine: FakeEngine, batcher_of: Start, problem: BaseException, place: str
) -> None:
    deaths: list[BaseException] = []
    told = threading.Event()
    batcher = batcher_of(start=False, on_death=lambda death: (deaths.append(death), told.set())[0], kv_bytes=20)
    model = FakeModel(engine)
    works: list[Work] = [writing(model, 1, limit=9), writing(model, 2, limit=9)]
    works += [WholeWork(model, lambda: 1)] if place == "pass" else []
    works += [scoring(model, [1])] if place == "pass" else []
    setattr(engine, f"before_{place}", lambda _: raise_error(problem))
    for work in works:
        batcher.submit(work)
    batcher.start()
    for work in works:
        assert isinstance(error(work), BatcherEnded | MemoryError)
    assert isinstance(error(works[1]), BatcherEnded)
    assert told.wait(LONG_WAIT)
    assert deaths == [problem]
    with pytest.raises(BatcherEnded, match=f"the server failed: {type(problem).__name__}"):
        batcher.submit(scoring(model, [1]))
    with pytest.raises(BatcherEnded):
        batcher.call(int)


@pytest.mark.parametrize("kind", ["pass", "step"])
def test_passes_that_fail_one_after_the_other_end_the_thread(engine: FakeEngine, batcher_of: Start, kind: str) -> None:
    deaths: list[BaseException] = []
    batcher, model = batcher_of(on_death=deaths.append), FakeModel(engine)

    def work() -> Work:
        return scoring(model, [1]) if kind == "pass" else writing(model, 1)

    def failing(number: int) -> None:
        setattr(engine, f"before_{kind}", lambda _: raise_error(ValueError(f"fault {number}")))
        batcher.submit(bad := work())
        assert str(error(bad)) == f"fault {number}"

    for number in range(MAX_IN_A_ROW - 1):
        failing(number)
    setattr(engine, f"before_{kind}", lambda _: None)
    batcher.submit(good := work())
    result(good)  # so they are not in a row
    for number in range(MAX_IN_A_ROW):
        failing(number)
    batcher._thread.join(LONG_WAIT)
    assert [str(death) for death in deaths] == [f"{MAX_IN_A_ROW} passes failed one after the other"]


# --- the end ------------------------------------------------------------------------------------------------------


def test_draining_finishes_what_is_there_and_takes_no_more(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False, kv_bytes=30), FakeModel(engine)
    works = [writing(model, number, limit=9) for number in range(5)]
    refused: list[BaseException] = []

    def submit_more(batch: FakeBatch) -> None:
        if engine.steps == 4:
            batcher._refusal = "the server is ending"  # as `drain` does, which can't be waited for in here
            with pytest.raises(BatcherEnded, match="the server is ending") as caught:
                batcher.submit(scoring(model, [1]))
            refused.append(caught.value)

    engine.before_step = submit_more
    for work in works:
        batcher.submit(work)
    batcher.start()
    assert batcher.drain(LONG_WAIT)
    assert refused
    assert [written(work) for work in works] == [[[number] * 9] for number in range(5)]


def test_what_is_not_finished_when_draining_ends_fails(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model, stuck, release = batcher_of(), FakeModel(engine), threading.Event(), threading.Event()
    engine.before_step = lambda _: (stuck.set(), release.wait(LONG_WAIT))[0]
    works = [writing(model, 1), writing(model, 2, limit=10**6, prompt=10**5)]
    for work in works:
        batcher.submit(work)
    assert stuck.wait(LONG_WAIT)
    pending = batcher.call(int)
    assert not batcher.drain(0)
    for work in works:
        assert "did not finish this request within 0 s" in str(error(work))
    assert isinstance(pending.exception(0), BatcherEnded)
    release.set()
    assert batcher.drain(LONG_WAIT), "the thread drops what has failed"
    assert engine.steps == 1


def test_a_batcher_that_was_never_started_ends_too(engine: FakeEngine) -> None:
    batcher, work = Batcher(ServerMetrics()), scoring(FakeModel(engine), [1])
    batcher.submit(work)
    assert batcher.drain(0)
    assert isinstance(error(work), BatcherEnded)


def test_nothing_keeps_a_model_alive_after_its_work(engine: FakeEngine, batcher_of: Start) -> None:
    import gc
    import weakref

    batcher = batcher_of()
    gc.disable()
    try:
        model = FakeModel(engine)
        works: list[Work] = [scoring(model, [1]), writing(model, 2), WholeWork(model, lambda: 3)]
        for work in works:
            batcher.submit(work)
        for work in works:
            result(work)
        batcher.call(int).result(LONG_WAIT)
        batcher.call(int).result(LONG_WAIT)  # the round of the works is over
        alive = weakref.ref(model)
        del model, works, work
        assert alive() is None
    finally:
        gc.enable()


# --- anything at any time -----------------------------------------------------------------------------------------


def random_work(draw: random.Random, models: list[Any], canary: int) -> Work:
    model = draw.choice(models)
    late = {"deadline": time.monotonic() - 1} if draw.random() < 0.05 else {}
    if draw.random() < 0.5:
        count = draw.choice([1, 1, 1, 2, 7, 40])
        head = EchoHead(lambda _: raise_error(KeyError(canary))) if draw.random() < 0.05 else None  # type: ignore[arg-type,return-value]
        return scoring(model, [canary] * count, draw.choice([2, 9, 70, 600]), head, **late)
    if draw.random() < 0.9:
        fails = draw.random() < 0.05
        on_token = (lambda row: raise_error(KeyError(canary))) if fails else None
        shape = draw.choice([1, 4, 20]), draw.choice([1, 30, 400]), draw.choice([1, 1, 4])
        return writing(model, canary, *shape, on_token, **late)
    return WholeWork(model, lambda: canary if canary % 7 else raise_error(KeyError(canary)), **late)


def is_own_answer(work: Work, canary: int) -> bool:
    """Whether it ended in a way that it may: its own answer, its own fault, or a shared one."""
    if work.future.cancelled():
        return work.cancelled
    problem = work.future.exception(0)
    if isinstance(problem, KeyError):
        return problem.args == (canary,)
    if problem is not None:
        return isinstance(problem, WorkExpired) or str(problem) == "a shared fault"
    if isinstance(work, ScoringWork):
        return bool(work.future.result() == [canary] * len(work.items))
    if isinstance(work, WritingWork):
        return all(row.new_ids == [canary] * row.limit for row in work.future.result())
    return bool(work.future.result() == canary)


def run_at_random(count: int, seed: int) -> dict[str, int]:
    """Submit random work while other work is cancelled and passes fail; return how much of it ended how."""
    draw, engines = random.Random(seed), [FakeEngine(), FakeEngine()]
    faults = random.Random(seed + 1)

    def fault(_: Any) -> None:
        if faults.random() < 0.01:
            raise ValueError("a shared fault")

    for engine in engines:
        engine.before_pass = engine.before_step = fault
    models = [FakeModel(engine, number) for engine in engines for number in range(3)]
    batcher = Batcher(ServerMetrics(), max_waiting=50, kv_bytes=1000)
    batcher.start()
    works: list[tuple[Work, int]] = []
    ends: dict[int, int] = {}
    refused = 0
    while len(works) < count:
        canary = 1000 + len(works)
        work = random_work(draw, models, canary)
        work.future.add_done_callback(lambda _, canary=canary: ends.update({canary: ends.get(canary, 0) + 1}))
        try:
            batcher.submit(work)
        except QueueFull:
            refused += 1
            works[draw.randrange(len(works))][0].future.cancel() if draw.random() < 0.1 else time.sleep(0.001)
            continue
        works.append((work, canary))
        if draw.random() < 0.1:
            draw.choice(works)[0].cancel()
    assert batcher.drain(LONG_WAIT)
    assert all(work.future.done() and ends[canary] == 1 for work, canary in works)
    assert (batcher.waiting, batcher.active) == (0, 0)
    wrong = [canary for work, canary in works if not work.future.cancelled() and not is_own_answer(work, canary)]
    assert not wrong
    assert all(not batch.rows and not batch.unread for engine in engines for batch in engine.batches[-1:])
    metrics = batcher.metrics.exposition().decode()
    assert "gptask_decoding_rows 0.0" in metrics
    kinds = ["cancelled" if work.future.cancelled() else type(work.future.exception()).__name__ for work, _ in works]
    return {kind: kinds.count(kind) for kind in kinds} | {"refused": refused}


def test_random_work_ends_once_and_with_its_own_answer() -> None:
    kinds = run_at_random(400, seed=0)
    assert {"cancelled", "NoneType", "WorkExpired", "KeyError"} <= kinds.keys()
    assert kinds["NoneType"] > 200


@pytest.mark.long
def test_ten_thousand_pieces_of_random_work() -> None:
    kinds = run_at_random(10_000, seed=1)
    assert {"cancelled", "NoneType", "WorkExpired", "KeyError", "ValueError"} <= kinds.keys()


def test_a_future_that_the_other_side_cancels_is_no_error(engine: FakeEngine, batcher_of: Start) -> None:
    batcher, model = batcher_of(start=False), FakeModel(engine)
    works = [scoring(model, [1]), writing(model, 1), WholeWork(model, lambda: 1)]
    engine.before_pass = lambda _: works[0].future.cancel() and None  # while it is computed
    engine.before_step = lambda _: works[1].future.cancel() and None
    works[2].call = works[2].future.cancel  # type: ignore[attr-defined]
    for work in works:
        batcher.submit(work)
    call = batcher.call(int)
    call.cancel()
    batcher.start()
    assert batcher.drain(LONG_WAIT)
    for work in works:
        with pytest.raises(CancelledError):
            work.future.result(0)
