"""A thread takes turns with the batcher: never beside a pass, and never two passes in a row where others wait."""

import threading

import pytest
from gptask.serving.batching.batcher import Batcher, BatcherEnded, QueueFull
from gptask.serving.batching.turns import Turns
from gptask.serving.batching.work import WholeWork, WorkExpired
from gptask.serving.prometheus import ServerMetrics


@pytest.fixture
def batcher():
    started = Batcher(ServerMetrics())
    started.start()
    yield started
    assert started.drain(10)


def submitter(batcher):
    def submit(work):
        batcher.submit(work)
        return work.future

    return submit


def whole(batcher, call):
    work = WholeWork(None, call)
    batcher.submit(work)
    return work.future


def test_others_compute_between_two_turns_and_never_in_one(batcher):
    events, first, second = [], threading.Event(), threading.Event()

    def explain():
        with Turns(None, submitter(batcher)) as turns:
            turns.next()
            events.append("turn 1")
            first.set()
            assert second.wait(10)  # the other's work is queued
            events.append("turn 1 goes on")
            turns.next()
            events.append("turn 2")

    thread = threading.Thread(target=explain)
    thread.start()
    assert first.wait(10)
    other = whole(batcher, lambda: events.append("other"))
    second.set()
    thread.join(10)
    other.result(10)
    assert events == ["turn 1", "turn 1 goes on", "other", "turn 2"]


def test_the_batcher_goes_on_after_an_exception(batcher):
    def fail():
        with Turns(None, submitter(batcher)) as turns:
            turns.next()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert whole(batcher, lambda: 7).result(10) == 7


def test_work_that_ends_before_its_turn_raises(batcher):
    blocked, submitted = threading.Event(), []
    waiting = whole(batcher, blocked.wait)

    def submit(work):
        submitted.append(work)
        batcher.submit(work)
        work.expire()
        return work.future

    with pytest.raises(WorkExpired), Turns(None, submit) as turns:
        turns.next()
    blocked.set()
    assert waiting.result(10)
    assert whole(batcher, lambda: 7).result(10) == 7  # nothing waits for a turn that is given up


def test_a_turn_that_begins_as_its_work_expires_does_not_hold_the_batcher(batcher):
    def submit(work):
        call, begun = work.call, threading.Event()
        work.call = lambda: (begun.set(), call())
        batcher.submit(work)
        assert begun.wait(10)
        work.expire()
        return work.future

    with pytest.raises(WorkExpired), Turns(None, submit) as turns:
        turns.next()
    assert whole(batcher, lambda: 7).result(10) == 7


def test_a_full_queue_refuses_the_first_turn_alone():
    batcher, blocked = Batcher(ServerMetrics(), max_waiting=1), threading.Event()
    batcher.start()
    with Turns(None, submitter(batcher)) as turns:
        turns.next()
        waiting = whole(batcher, blocked.wait)
        blocked.set()
        turns.next()
        assert waiting.result(10)
        waiting = whole(batcher, blocked.wait)
        with pytest.raises(QueueFull), Turns(None, submitter(batcher)) as others:
            others.next()
    assert batcher.drain(10)


def test_the_servers_end_ends_the_turns():
    batcher = Batcher(ServerMetrics())
    batcher.start()
    assert batcher.drain(10)
    with pytest.raises(BatcherEnded), Turns(None, submitter(batcher)) as turns:
        turns.next()
