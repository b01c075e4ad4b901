"""The lock of a run folder: one process at a time works in it, and a second one is told which.

The system lets go of the lock when its process ends, however it ends. The file that holds the lock names its holder and
is removed with the lock; one that a killed process left behind is taken over.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from types import ModuleType

from gptask.errors import UserError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger("gptask")
LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)  # a file system has none
MAX_HOLDER_BYTES = 10_000
_held = set[int]()  # descriptors of the locks of this process


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; where the file system has no locks, this is logged once.

    Raises `UserError` where another process holds it, and where the folder can't be written to; `FileNotFoundError`
    where the folder is not there, also because the process that held the lock has just removed it.
    """
    descriptor = _acquire(folder)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a process that was forked meanwhile
            _held.discard(descriptor)
            (folder / LOCK_FILE).unlink(missing_ok=True)  # before the lock is let go of, so it is still ours
            os.close(descriptor)


def _acquire(folder: Path) -> int | None:
    """The descriptor that holds the lock; None where there are no locks."""
    path = folder / LOCK_FILE
    if fcntl is None:
        _say_there_are_no_locks("this system")
        return None
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_removed(path, descriptor):  # by the process that held it before
                break
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                _say_there_are_no_locks(f"the file system of {folder}")
                return None
            if isinstance(error, BlockingIOError | PermissionError):
                raise UserError(
                    f"{folder} is in use: {holder} works in it. Wait until it has ended, or stop it, and start again"
                ) from error
            raise
        os.close(descriptor)
    _held.add(descriptor)
    with suppress(OSError):  # a full disk: the lock holds without its holder's name
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, _this_process(), 0)
    return descriptor


def _opened(path: Path) -> int:
    """A descriptor of the lock file, which is made if it is not there; a link is not followed out of the folder."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{path} can't be written: {error.strerror}; a run needs a folder that it can write to"
        ) from error


def _is_removed(path: Path, descriptor: int) -> bool:
    """Whether the locked file no longer lies at its path, so that others lock another file there."""
    try:
        return not os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return True


def _this_process() -> bytes:
    """What the lock file says of its holder, as JSON."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}).encode()


def _holder(descriptor: int) -> str:
    """The holder of a lock in words."""
    try:
        holder = json.loads(os.pread(descriptor, MAX_HOLDER_BYTES, 0))
        text = f"process {holder['pid']} on {holder['host']}, since {holder['since']} ({holder['command']}),"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its name yet
        return "another process"
    return "".join(character if character.isprintable() else "?" for character in text)


@cache
def _say_there_are_no_locks(where: str) -> None:
    log.warning("%s has no file locks: nothing keeps a second process from working in the same run folder", where)


def _let_go_in_fork() -> None:
    """Close the locks in a forked process, such as a worker that loads data: it may outlive the one that holds them."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_fork)
