"""Ctrl-C and SIGTERM: the first signal stops the work in progress, but never between two halves of one state.

While an optimizer step or a checkpoint is half made, a signal is held back until that is complete. Signals behind the
first are ignored, so that what it saves is saved; nothing of this is in force outside of `interruptible`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from gptask.errors import Terminated

USUAL_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@dataclass
class _State:
    """What the handler knows: the process that installed it, and how far a stop has come."""

    pid: int = 0
    holding: bool = False
    held_back: KeyboardInterrupt | None = None
    stopping: bool = False


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
    _state = _State(os.getpid())
    for number in replaced:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, usual in replaced.items():
            signal.signal(number, usual)


def hold_signals() -> None:
    """Hold a signal back until `release_signals`: what is saved in between would be neither before nor after."""
    _state.holding = True


def signals_are_held() -> bool:
    """Whether a signal would be held back now."""
    return _state.holding


def release_signals() -> None:
    """Stop the work now if a signal was held back."""
    _state.holding = False
    if held_back := _state.held_back:
        _state.held_back, _state.stopping = None, True
        raise held_back


def forget_signals() -> None:
    """Hold no signal back any more: an error ends the work."""
    _state.holding, _state.held_back = False, None


def _stop(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.pid:  # a forked worker of a data loader: it ends as if nothing were installed
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    if _state.stopping or _state.held_back:
        return
    stop = Terminated("stopped by SIGTERM") if number == signal.SIGTERM else KeyboardInterrupt("stopped")
    if _state.holding:
        _state.held_back = stop
        return
    _state.stopping = True
    raise stop


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
