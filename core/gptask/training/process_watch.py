"""Several processes of one run end together: a thread in each watches, and the first process decides.

Every other process, a *member*, holds a connection to rank 0, which the system closes with the process: that tells of a
death at once, wherever the main threads are, and under any launcher. A signal to a member is handed on to rank 0, which
stops as a single process does (`interrupts`), writes its checkpoint alone, and then lets all end. What does not stop
within `GRACE` seconds, as in a collective operation with a dead process, is ended by the threads.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from gptask.errors import UserError
from gptask.runs.folder import resume_hint
from gptask.training.interrupts import signals_are_held

log = logging.getLogger("gptask")
ADDRESS = "GPTASK_PROCESSES"  # environment variable that tells a process that rank 0 starts where to connect
GRACE = 7.0  # seconds from a signal or a death until what has not stopped is ended
LONG_GRACE = 60.0  # ... while an optimizer step or a checkpoint is half made and all processes live
OWN_ERROR_FIRST = 2.0  # seconds that a process gets to fail by itself, and to hear of a cause elsewhere
POLL = 0.2  # seconds between two looks at the processes that rank 0 started
SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAILED = 2  # the exit code where a process was lost


class ProcessFailed(UserError):
    """Another process of the run has died or failed."""


class Channel:
    """Messages between two processes: one JSON object a line. ``name`` is that of the process at the other end."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.rank, self.name = connection, -1, "a process"
        self.done = False  # whether the other process needs nothing any more
        self.lost_at: float | None = None
        self._unread, self._lock = b"", threading.Lock()
        connection.settimeout(2)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):  # a machine that is gone closes nothing
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)

    def send(self, **message: Any) -> None:
        """Send a message; nothing happens where the other process is gone."""
        with suppress(OSError), self._lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come since, None at the end of the connection."""
        try:
            received = self.connection.recv(65536)
        except OSError:
            received = b""
        *lines, self._unread = (self._unread + received).split(b"\n")
        messages = [json.loads(line) for line in lines]
        return messages if messages or received else None


class _Watch:
    """What the threads of all processes share: they hear of signals whatever the main thread does."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self.selector.register(self._wake_read, selectors.EVENT_READ, self._read_signals)
        self._closed = False
        self._main_thread = threading.main_thread().ident or 0
        self._hears_signals = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._run, daemon=True, name="process-watch")

    def start(self) -> None:
        """Watch from now on."""
        if self._hears_signals:
            self._previous_fd = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        if self._hears_signals:
            signal.set_wakeup_fd(self._previous_fd)
        self._closed = True
        with suppress(OSError):
            self._wake_write.send(b"\0")
        self._thread.join(2)
        for file in self.sockets():
            file.close()

    def sockets(self) -> list[socket.socket]:
        """All that this process has open."""
        return [self._wake_read, self._wake_write]

    def leaving(self) -> None:
        """The main thread has begun to stop: it may write what it has to for as long as that takes."""

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self.selector.select(POLL):
                key.data(key.fileobj)
            self._look_around()

    def _read_signals(self, wake: socket.socket) -> None:
        for number in wake.recv(64):
            if number in SIGNALS:
                self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        raise NotImplementedError

    def _look_around(self) -> None:
        """What is to be done from time to time."""


class MainWatch(_Watch):
    """The watch of rank 0: hears from all others, stops the main thread, and lets all end."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}  # those that this process started, by rank
        self.members: dict[int, Channel] = {}
        self._listener = socket.create_server(("127.0.0.1" if host in ("127.0.0.1", "localhost") else "", 0))
        self._token = secrets.token_hex(16)
        self.address = f"{host}:{self._listener.getsockname()[1]}:{self._token}"
        self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._cause = self._failure = ""  # of a stop: a signal, or another process that died or failed
        self._has_failure = threading.Event()
        self._interrupt_at = self._deadline = float("inf")
        self._is_leaving = False
        self._exit_code = FAILED

    def sockets(self) -> list[socket.socket]:
        """See `_Watch`."""
        return [*super().sockets(), self._listener, *(member.connection for member in self.members.values())]

    def leaving(self) -> None:
        """See `_Watch`."""
        self._is_leaving = True
        self._interrupt_at = self._deadline = float("inf")

    def lost_process(self) -> bool:
        """Whether another process has died or failed, which may become known a moment later than its consequences."""
        return self._has_failure.wait(OWN_ERROR_FIRST)

    def finish(self, error: BaseException | None) -> None:
        """The work is done, or an error ends it: let all other processes end, too.

        Raises `ProcessFailed` in place of an error that is the consequence of another process's death.
        """
        self.leaving()
        caused = error is not None and not isinstance(error, UserError)
        lost = caused and (self._failure or (not isinstance(error, KeyboardInterrupt) and self.lost_process()))
        if error is None:
            self._tell_all(finished=True)
        else:
            interrupted = isinstance(error, KeyboardInterrupt) and not self._failure
            self._end_all(self._exit_code if interrupted and self._cause else FAILED)
        self.close()
        if lost:
            raise ProcessFailed(f"{self._failure}: all processes are ended. {_process.hint()}") from error

    def _end_all(self, code: int) -> None:
        """Let the others exit, and end those of this process that don't."""
        self._tell_all(end=code)
        ends = time.monotonic() + 2
        for process in self.processes.values():
            try:
                process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tell_all(self, **message: Any) -> None:
        for member in list(self.members.values()):
            member.send(**message)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        channel = Channel(listener.accept()[0])
        self.selector.register(channel.connection, selectors.EVENT_READ, lambda _: self._hear(channel))

    def _hear(self, channel: Channel) -> None:
        try:
            messages = channel.receive()
        except ValueError:  # no process of this run
            messages = None
        for message in messages or []:
            if channel.rank < 0:
                if not secrets.compare_digest(str(message.get("token")), self._token):
                    messages = None
                    break
                channel.rank, channel.name = message["rank"], f"rank {message['rank']} (process {message['pid']})"
                self.members[channel.rank] = channel
                if self._cause or self._failure:
                    channel.send(stopping=True)
            elif "signal" in message:
                self._stop(message["signal"], channel.name)
            elif "failed" in message:
                self._fail(f"{channel.name} failed: {message['failed']}")
            channel.done |= "done" in message
        if messages is None:
            self.selector.unregister(channel.connection)
            channel.connection.close()
            channel.lost_at = time.monotonic()
            if channel.rank >= 0 and channel.rank not in self.processes and not channel.done:
                self._fail(f"{channel.name} has died")

    def _on_signal(self, number: int) -> None:
        self._stop(number, f"rank 0 (process {os.getpid()})")

    def _stop(self, number: int, name: str) -> None:
        """All stop because of a signal to one process: the main thread as a single one would, the others after it."""
        if self._cause or self._failure:
            return
        self._cause, self._exit_code = f"{name} got {signal.Signals(number).name}", 128 + number
        log.warning("%s: all processes stop", self._cause)
        self._tell_all(stopping=True)
        if not self._is_leaving:
            self._deadline = time.monotonic() + GRACE
        if not name.startswith("rank 0 "):
            signal.pthread_kill(self._main_thread, number)

    def _fail(self, failure: str) -> None:
        """All stop because one has died or failed: the main thread by its own error, or it is interrupted."""
        if self._failure:
            return
        if not self._is_leaving:
            self._deadline = min(self._deadline, time.monotonic() + GRACE)
        if self._cause:  # they are stopping anyway
            return
        self._failure = failure
        self._tell_all(stopping=True)
        self._has_failure.set()
        if not self._is_leaving:
            self._interrupt_at = time.monotonic() + OWN_ERROR_FIRST

    def _look_around(self) -> None:
        self._look_at_processes()
        now = time.monotonic()
        if now > self._interrupt_at:
            self._interrupt_at = float("inf")
            signal.pthread_kill(self._main_thread, signal.SIGTERM)
        waits = self._cause and not self._failure and signals_are_held()
        if now > self._deadline + (LONG_GRACE - GRACE if waits else 0):
            self._deadline = float("inf")
            log.error(
                "gptask: %s: all processes are ended, as rank 0 did not stop in %.0f seconds. %s",
                self._failure or self._cause, GRACE, _process.hint(),
            )  # fmt: skip
            self._end_all(self._exit_code)
            _exit(self._exit_code)

    def _look_at_processes(self) -> None:
        for rank, process in self.processes.items():
            member = self.members.get(rank)
            if process.poll() is None or (member and member.done):
                continue
            code, name = int(process.returncode), f"rank {rank} (process {process.pid})"
            by_signal = next((number for number in SIGNALS if code in (-number, 128 + number)), None)
            if by_signal and not self._failure:  # it had no handler yet
                self._stop(by_signal, name)
            self._fail(f"{name} {_ended_by(code)}")


def _ended_by(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    reason = " (has memory run out?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{reason}"


class MemberWatch(_Watch):
    """The watch of another process than rank 0: it hands signals on, and ends the process when rank 0 says so or dies.

    Raises `ProcessFailed` where rank 0 does not answer.
    """

    def __init__(self, rank: int, address: str) -> None:
        super().__init__()
        self.rank, (host, port, token) = rank, address.rsplit(":", 2)
        try:
            self.channel = Channel(socket.create_connection((host, int(port)), timeout=10))
        except OSError as error:
            raise ProcessFailed(f"rank 0 has died: rank {rank} is ended. {_process.hint()}") from error
        self.channel.send(token=token, rank=rank, pid=os.getpid())
        self.selector.register(self.channel.connection, selectors.EVENT_READ, self._hear)
        self._stopping = threading.Event()
        self._handlers: dict[int, Any] = {}

    def sockets(self) -> list[socket.socket]:
        """See `_Watch`."""
        return [*super().sockets(), self.channel.connection]

    def start(self) -> None:
        """See `_Watch`; the main thread goes on at a signal, since rank 0 needs it until all stop."""
        super().start()
        if self._hears_signals:
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in heard}

    def close(self) -> None:
        """See `_Watch`."""
        super().close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def finish(self, error: BaseException | None) -> None:
        """Tell rank 0 that the work is done; an error, which rank 0 reports, ends the process."""
        if error is None:
            self.channel.send(done=True)
            self.close()
            return
        if not isinstance(error, UserError):
            if self._stopping.wait(OWN_ERROR_FIRST):  # the error is a consequence
                time.sleep(LONG_GRACE)  # the thread ends the process, once rank 0 has written what it has to
                _exit(FAILED)
            traceback.print_exception(error)
        self.channel.send(failed=str(error) or type(error).__name__)
        _exit(FAILED)  # which ends an operation that rank 0 waits in

    def lost_process(self) -> bool:
        """See `MainWatch`; a member writes nothing."""
        return False

    def _on_signal(self, number: int) -> None:
        self.channel.send(signal=number)

    def _hear(self, _: socket.socket) -> None:
        messages = self.channel.receive()
        for message in messages or []:
            self.channel.done |= "finished" in message
            if "stopping" in message:
                self._stopping.set()
            if "end" in message:
                _exit(message["end"])
        if messages is None:
            self.selector.unregister(self.channel.connection)
            if not self.channel.done:
                sys.stderr.write(f"gptask: rank 0 has died: rank {self.rank} (process {os.getpid()}) is ended. "
                                 f"{_process.hint()}\n")  # fmt: skip
                _exit(FAILED)


def _exit(code: int) -> NoReturn:
    """End the process at once: its main thread may be in an operation that never returns."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


# --- the watch of this process ----------------------------------------------------------------------------------------


@dataclass
class _Process:
    """The watch of this process while it is one of several, and what its user can do once it is ended."""

    watch: MainWatch | MemberWatch | None = None
    hint: Callable[[], str] = lambda: "The same command begins again."


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
        begin_watch(MemberWatch(int(os.environ["LOCAL_RANK"]), address))
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


def begin_watch(watch: MainWatch | MemberWatch) -> None:
    """Watch until the end of `watched`."""
    _process.watch = watch
    watch.start()


def set_hint(hint: Callable[[], str]) -> None:
    """Let `hint` tell how to go on once the processes are ended."""
    _process.hint = hint


def current_watch() -> MainWatch | MemberWatch | None:
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
