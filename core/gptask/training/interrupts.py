"""Ctrl-C and SIGTERM: the first signal stops the work in progress, but never between two halves of one state.

While an optimizer step or a checkpoint is half made, a signal is held back until that is complete. Signals behind the
first are ignored, so that what it saves is saved; nothing of this is in force outside of `interruptible`.

C code may clear the error that a signal raises inside it: pyarrow does so where it tries to import pandas. An error
that is destroyed while the work goes on has been cleared, so the signal is sent again.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

from gptask.errors import Interrupted, Terminated

AGAIN = 0.05  # seconds until a signal whose error was cleared is sent again
USUAL_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@dataclass
class _State:
    """What the handler knows: the process that installed it, and how far a stop has come."""

    pid: int = 0
    ended: bool = False  # the work, whose handlers are no longer in force
    holding: bool = False
    held_back: int | None = None  # the signal
    stop: weakref.ref[KeyboardInterrupt] | None = None  # the error that stops the work


_state = _State()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the enclosed work be stopped by SIGTERM as by Ctrl-C: it raises `Terminated`, a ``KeyboardInterrupt``.

    A handler of the caller's own is left alone, and so is a signal that is ignored, as in a shell's background jobs.
    Calls may be nested; only the main thread can install handlers.
    """
    replaced = {number: usual for number, usual in USUAL_HANDLERS.items() if signal.getsignal(number) == usual}
    if threading.current_thread() is not threading.main_thread() or not replaced:
        yield
        return
    global _state
    outer, _state = _state, _State(os.getpid())
    state = _state
    for number in replaced:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        state.ended = True
        for number, usual in replaced.items():
            signal.signal(number, usual)
        _state = outer


def hold_signals() -> None:
    """Hold a signal back until `release_signals`: what is saved in between would be neither before nor after."""
    _state.holding = True


def signals_are_held() -> bool:
    """Whether a signal would be held back now."""
    return _state.holding


def release_signals() -> None:
    """Stop the work now if a signal was held back."""
    _state.holding = False
    if number := _state.held_back:
        _state.held_back = None
        raise _first_stop(number)


def forget_signals() -> None:
    """Hold no signal back any more: an error ends the work."""
    _state.holding, _state.held_back = False, None


def _stop(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.pid:  # a forked worker of a data loader: it ends as if nothing were installed
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    if _state.stop or _state.held_back:
        return
    if _state.holding:
        _state.held_back = number
        return
    raise _first_stop(number)


def _first_stop(number: int) -> KeyboardInterrupt:
    """The error of the first signal; no frame that it passes names it, so once it is cleared it is destroyed."""
    stop = Terminated("stopped by SIGTERM") if number == signal.SIGTERM else Interrupted("stopped")
    _state.stop = weakref.ref(stop, partial(_send_again, _state, number))
    return stop


def _send_again(state: _State, number: int, stop: object) -> None:
    """Send a signal whose error was destroyed while the work goes on; here, it would be raised in a destructor."""

    def send() -> None:
        if not state.ended:
            signal.pthread_kill(main_thread, number)

    if not state.ended and state.pid == os.getpid():
        state.stop, main_thread = None, threading.main_thread().ident or 0
        timer = threading.Timer(AGAIN, send)
        timer.daemon = True
        timer.start()


@contextmanager
def interrupts_of_lightning() -> Iterator[None]:
    """Raise again the ``KeyboardInterrupt`` that Lightning turns into ``exit(1)``.

    Where Ctrl-C comes between two epochs, it fails with a ``RuntimeError`` in its own teardown.
    """
    try:
        yield
    except (SystemExit, RuntimeError) as end:
        if isinstance(stop := end.__context__, KeyboardInterrupt):
            raise type(stop)(*stop.args) from end
        raise
