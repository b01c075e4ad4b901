"""Running what isn't ours: a plugin's module may print, read, exit or raise anything, and harms nobody."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def isolated() -> Iterator[list[int]]:
    """Keep standard output and input from the code within: what it prints goes to standard error, and it reads nothing.

    Yields a list that is empty unless the user pressed Ctrl-C, so that a ``KeyboardInterrupt`` of the code's own making
    can be told from theirs.
    """
    with contextlib.redirect_stdout(sys.stderr), _descriptor_redirected(), _no_input(), _ctrl_c() as pressed:
        yield pressed


@contextlib.contextmanager
def _descriptor_redirected() -> Iterator[None]:
    """The same for what processes and C code write; without one of the two descriptors there is nothing to spoil."""
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _no_input() -> Iterator[None]:
    kept, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = kept


@contextlib.contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed  # no KeyboardInterrupt comes here but the code's own
        return
    theirs = before

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        theirs(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
