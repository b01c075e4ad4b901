"""What a case touches beside its own folder: each file change, connection, process and import is seen as it happens.

Python's audit events come before the act, so that what is forbidden is recorded and refused. Native code that opens
files itself is not seen here; `Sandbox` looks at the folders that it might use.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CANARY = "gptask_fuzz_canary"  # a module that no run, file or option may get imported
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {  # event: positions of each changed path and of its dir_fd
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
}
NETWORK = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
THIS_MACHINE = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0")


@dataclass
class Watch:
    """What is allowed while it is active, and what happened against that: pairs of a kind and a text."""

    writable: tuple[str, ...]
    faults: list[tuple[str, str]] = field(default_factory=list)


_active: Watch | None = None


@contextmanager
def watched(writable: Sequence[Path]) -> Iterator[Watch]:
    """Watch this process; files may change below the ``writable`` folders only."""
    global _active
    _install()
    _active = watch = Watch(tuple(os.path.realpath(path) for path in writable))
    try:
        yield watch
    finally:
        _active = None


_installed: list[bool] = []


def _install() -> None:
    if not _installed:  # a hook can't be taken away
        _installed.append(True)
        sys.addaudithook(_hook)
        sys.meta_path.insert(0, _CanaryFinder())


class _CanaryFinder:
    """Records that somebody asks for the canary; there is no such module."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if _active and name.partition(".")[0] == CANARY:
            _active.faults.append(("import", f"import of {name}"))


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _active is None:
        return
    if event == "open":
        path, _, flags = args
        if isinstance(flags, int) and flags & WRITES and not isinstance(path, int) and path is not None:
            _check_write(event, path, None, follow=True)
    elif event in CHANGES:
        for position, folder in CHANGES[event]:
            _check_write(event, args[position], None if folder is None or folder >= len(args) else args[folder])
    elif event in NETWORK:
        _check_network(event, args)
    elif event in PROCESSES:
        program = os.path.basename(os.fsdecode(args[0])) if args and isinstance(args[0], str | bytes) else ""
        if program not in ("git", "uname", "lscpu", "fc-list"):
            _refuse("process", f"{event} {args!r:.200}")
    elif event == "pickle.find_class":
        _refuse("pickle", f"a pickle asks for {args[0]}.{args[1]}")


def _check_write(event: str, path: Any, folder: Any, follow: bool = False) -> None:
    watch = _active
    if watch is None or isinstance(path, int):
        return
    name = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):
        name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    parent, last = os.path.split(os.path.abspath(name))
    real = os.path.realpath(name) if follow else os.path.join(os.path.realpath(parent), last)
    if real != os.devnull and not any(real == root or real.startswith(root + os.sep) for root in watch.writable):
        _refuse("write outside", f"{event} {real}")


def _check_network(event: str, args: tuple[Any, ...]) -> None:
    target: Any = args[1] if event in ("socket.connect", "socket.sendto") else args[0]
    host = target[0] if isinstance(target, tuple) else target
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host not in THIS_MACHINE:
        _refuse("network", f"{event} {target!r:.200}", errno.ENETUNREACH)


def _refuse(kind: str, text: str, code: int = errno.EACCES) -> None:
    if _active is not None:
        _active.faults.append((kind, text))
    raise OSError(code, os.strerror(code), text)
