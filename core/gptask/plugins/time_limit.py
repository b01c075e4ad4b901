"""A time limit for Python code of others, in any thread."""

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
PAUSE = 0.02  # seconds between two looks at the clock


def within_seconds(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns or raises; raises `TimeoutError` where it takes longer, and ends it.

    The seconds are the processor's, where the system counts those of a thread: a busy machine ends nothing early. The
    function runs in a thread, which gets a `SystemExit` in its next step of Python. A step in C, such as a product of a
    text and a number, is not interrupted.
    """
    results, errors, clocks = list[T](), list[BaseException](), list[int]()
    started = time.monotonic()

    def call() -> None:
        if hasattr(time, "pthread_getcpuclockid"):  # macOS has none
            clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread, spent = threading.Thread(target=call, daemon=True), 0.0
    thread.start()
    while thread.is_alive() and spent < seconds:
        thread.join(min(PAUSE, seconds))
        with suppress(OSError):  # the thread has ended, and its clock with it
            spent = time.clock_gettime(clocks[0]) if clocks else time.monotonic() - started
    if thread.is_alive() and thread.ident:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        raise TimeoutError(f"it does not end within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]
