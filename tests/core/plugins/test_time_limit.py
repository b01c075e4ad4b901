"""Code of others is given some seconds, in whatever thread it is called."""

import itertools
import threading
import time

import pytest
from gptask.plugins.time_limit import within_seconds


def test_what_ends_in_time_returns_or_raises_as_alone() -> None:
    assert within_seconds(10, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within_seconds(10, lambda: 1 // 0)


def test_waiting_for_the_processor_does_not_count() -> None:
    assert within_seconds(0.05, lambda: time.sleep(0.2)) is None


def test_what_does_not_end_is_ended() -> None:
    stopped = threading.Event()

    def run() -> None:
        try:
            for _ in itertools.count():
                pass
        finally:
            stopped.set()

    with pytest.raises(TimeoutError, match=r"it does not end within 0\.05 s"):
        within_seconds(0.05, run)
    assert stopped.wait(10)
