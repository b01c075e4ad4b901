"""The watch of this process over the other processes of its run, or over its waiting for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gptask.runs.folder import resume_hint
from gptask.training.process_channel import SIGNALS, begin_again
from gptask.training.process_threads import MainWatch, MemberWatch, WaitingWatch

ADDRESS = "GPTASK_PROCESSES"  # environment variable that tells a process that rank 0 starts where to connect


@dataclass
class _Process:
    """The watch of this process while it is one of several, and what its user can do once it is ended."""

    watch: MainWatch | MemberWatch | WaitingWatch | None = None
    hint: Callable[[], str] = begin_again


_process = _Process()


@contextmanager
def watched(resumable: bool = False) -> Iterator[None]:
    """Let the enclosed work end with that of the other processes, from where they are started or have met.

    ``resumable`` work goes on from its run folder.
    """
    global _process
    _process = _Process()
    if resumable and (folder := os.environ.get("GPTASK_RUN_FOLDER")):
        set_hint(partial(resume_hint, Path(folder)))
    if address := os.environ.pop(ADDRESS, None):
        begin_watch(MemberWatch(int(os.environ["LOCAL_RANK"]), address, hint))
    try:
        yield
    except BaseException as error:
        if watch := _process.watch:
            watch.finish(error)
        raise
    else:
        if watch := _process.watch:
            watch.finish(None)
    finally:
        _process.watch = None


def begin_watch(watch: MainWatch | MemberWatch | WaitingWatch) -> None:
    """Watch until the end of `watched`, or until another watch begins."""
    if _process.watch:
        _process.watch.close()
    _process.watch = watch
    watch.start()


def set_hint(how_to_go_on: Callable[[], str]) -> None:
    """Set what `hint` tells from here on."""
    _process.hint = how_to_go_on


def hint() -> str:
    """How to go on once the processes are ended."""
    return _process.hint()


def current_watch() -> MainWatch | MemberWatch | WaitingWatch | None:
    """The watch of this process, None while it is the only one."""
    return _process.watch


def lost_process() -> bool:
    """Whether an error in rank 0 is the consequence of the death of another process."""
    return _process.watch is not None and _process.watch.lost_process()


def _forget_watch() -> None:
    """Let a forked process, such as a data loader's, neither hear signals nor keep connections open."""
    if watch := _process.watch:
        _process.watch = None
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for file in watch.sockets():
            file.close()


os.register_at_fork(after_in_child=_forget_watch)
