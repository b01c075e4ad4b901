"""Ctrl-C and SIGTERM stop the work, but not in the middle of what has to be whole."""

import ctypes
import os
import signal
import threading
import time

import pytest
from gptask.cli.output import report_error
from gptask.errors import Interrupted, Terminated
from gptask.training.interrupts import (
    AGAIN,
    forget_signals,
    hold_signals,
    interruptible,
    interrupts_of_lightning,
    release_signals,
)

pytestmark = pytest.mark.usefixtures("usual_handlers")


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Terminated, 143)]
)
def test_a_signal_stops_the_work_and_the_handlers_of_before_are_back_after_it(number, error, code, capsys):
    with pytest.raises(KeyboardInterrupt) as stop, interruptible(), interruptible():
        signal.raise_signal(number)
    assert type(stop.value) is error
    assert report_error(stop.value) == code
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_held_signal_comes_once_what_must_be_whole_is_made_and_later_ones_are_ignored():
    with interruptible():
        hold_signals()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Terminated) as stop:
            release_signals()
        signal.raise_signal(signal.SIGINT)  # while the first one's checkpoint is written
        signal.raise_signal(signal.SIGTERM)
        release_signals()
        del stop
    with interruptible():
        hold_signals()
        signal.raise_signal(signal.SIGINT)
        forget_signals()  # an error ends the work first
        release_signals()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def clear_a_signal(number):
    """Send a signal in C code that clears what its handler raises, as pyarrow's does that tries to import pandas."""

    class Signalled:
        @property
        def name(self):
            signal.raise_signal(number)

    assert not ctypes.pythonapi.PyObject_HasAttrString(ctypes.py_object(Signalled()), b"name")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_that_a_library_clears_comes_again(number, code):
    def work():
        clear_a_signal(number)
        clear_a_signal(number)
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt) as stop, interruptible():
        work()
    assert report_error(stop.value) == code


def test_a_stop_that_a_library_clears_does_not_come_after_the_work():
    with interruptible():
        clear_a_signal(signal.SIGTERM)
    time.sleep(2 * AGAIN)  # the usual handler would end the process


def test_a_callers_own_handler_an_ignored_signal_and_other_threads_stay_as_they_are():
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("term"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert seen == ["term"]

    def elsewhere():
        with interruptible():
            seen.append("thread")

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["term", "thread"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_forked_worker_dies_of_the_signal(number):
    with interruptible():
        child = os.fork()
        if not child:
            signal.raise_signal(number)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number


@pytest.mark.parametrize("end", [SystemExit(1), RuntimeError("Please call `iter(combined_loader)` first.")])
def test_what_lightning_makes_of_a_stop_is_the_stop_again(end):
    end.__context__ = Terminated("stopped by SIGTERM")
    with pytest.raises(Terminated, match="stopped by SIGTERM"), interrupts_of_lightning():
        raise end
    with pytest.raises(type(end)), interrupts_of_lightning():
        raise type(end)("another")
