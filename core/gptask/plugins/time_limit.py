"""A time limit for Python code of others, in any thread."""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within_seconds(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns or raises; raises `TimeoutError` where it takes longer, and ends it.

    It runs in a thread, which gets a `SystemExit` in its next step of Python. A step in C, such as a product of a text
    and a number, is not interrupted.
    """
    results, errors = list[T](), list[BaseException]()

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() and thread.ident:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        raise TimeoutError(f"it does not end within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]
