"""Isolation of plugin code, which may print, read standard input, exit or raise anything without harm."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def isolated() -> Iterator[list[int]]:
    """Send what the enclosed code prints to standard error, and give it an empty standard input.

    Yields a list that stays empty unless the user presses Ctrl-C, which distinguishes the user's ``KeyboardInterrupt``
    from one that the code raises itself.
    """
    with (
        contextlib.redirect_stdout(sys.stderr),
        _redirected_descriptor(),
        _empty_input(),
        _recorded_ctrl_c() as pressed,
    ):
        yield pressed


@contextlib.contextmanager
def _redirected_descriptor() -> Iterator[None]:
    """Redirect what subprocesses and C code print, too; if a descriptor is closed, there is nothing to protect."""
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def _empty_input() -> Iterator[None]:
    saved, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = saved


@contextlib.contextmanager
def _recorded_ctrl_c() -> Iterator[list[int]]:
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield pressed  # here, only the code itself can raise a KeyboardInterrupt
        return
    original_handler = handler

    def record(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        original_handler(number, frame)

    signal.signal(signal.SIGINT, record)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, original_handler)
