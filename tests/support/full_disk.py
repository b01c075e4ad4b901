"""Command lines in a process of their own, on a disk that is full, with a limit on files, or with closed streams."""

import ctypes
import logging
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptask.cli import main

NEW_MOUNTS, PRIVATE_RECURSIVE = 0x00020000, 1 << 18 | 1 << 14  # of unshare(2) and mount(2)


@dataclass
class ChildEnded:
    """A child that has ended: its exit code, and what it wrote to both streams."""

    code: int
    text: str

    @property
    def message(self) -> str:
        """The error message, without a stack trace before it."""
        assert "Traceback" not in self.text, self.text
        assert self.code == 2, self.text
        return self.text[self.text.rindex("gptask: ") :]


def mount_small(folder: Path, size: int) -> None:
    """Mount an empty file system of ``size`` bytes for this process alone; raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size}".encode()
    for failed in (
        libc.unshare(NEW_MOUNTS),
        libc.mount(b"none", b"/", None, PRIVATE_RECURSIVE, None),
        libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "mount")


def in_child(call: Callable[[], object]) -> ChildEnded:
    """Call in a fork of this process; its output goes through a pipe, which no limit on files concerns."""
    reading, written = os.pipe()
    pid = os.fork()
    if not pid:
        code = 70
        with suppress(BaseException):
            code = _run_child(call, written)
        os._exit(code)
    os.close(written)
    with open(reading, "rb") as output:
        text = output.read().decode(errors="replace")
    return ChildEnded(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text)


def _run_child(call: Callable[[], object], output: int) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    logging.getLogger("gptask").handlers = []
    try:
        call()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def gptask(
    *arguments: str, prepare: Callable[[], object] = lambda: None, after: Callable[[], object] = lambda: None
) -> ChildEnded:
    """Run a command line in a child; ``prepare`` limits it before, ``after`` looks at what it has left."""

    def call() -> None:
        prepare()
        try:
            main([*map(str, arguments)])
        finally:
            after()

    return in_child(call)


def limit_files(size: int) -> Callable[[], None]:
    """No file of the child can grow beyond ``size`` bytes (``ulimit -f``)."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill_stream(number: int) -> Callable[[], None]:
    """A standard stream of the child goes to a disk that is full."""
    return lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), number) and None


def may_mount() -> bool:
    """Whether this machine lets a test mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        return in_child(lambda: mount_small(Path(folder) / "disk", 4096)).code == 0
