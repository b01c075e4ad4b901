"""Several processes of one run end together: a thread in each watches, and the first process decides.

Every other process, a *member*, holds a connection to rank 0, which the system closes with the process: that tells of a
death at once, wherever the main threads are, and under any launcher. A signal to a member is handed on to rank 0, which
stops as a single process does (`interrupts`), writes its checkpoint alone, and then lets all end. What does not stop
within `GRACE` seconds, as in a collective operation with a dead process, is ended by the threads.
"""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from gptask.errors import UserError
from gptask.training.interrupts import signals_are_held
from gptask.training.process_channel import POLL, SIGNALS, Channel, Watch, begin_again, exit_now

log = logging.getLogger("gptask")
GRACE = 7.0  # seconds from a signal or a death until what has not stopped is ended
LONG_GRACE = 60.0  # ... while an optimizer step or a checkpoint is half made and all processes live
OWN_ERROR_FIRST = 2.0  # seconds that a process gets to fail by itself, and to hear of a cause elsewhere
AGAIN = 1.0  # seconds until the main thread is interrupted again: a signal just before it waits does not wake it
FAILED = 2  # the exit code where a process was lost


class ProcessFailed(UserError):
    """Another process of the run has died or failed."""


class MainWatch(Watch):
    """The watch of rank 0: hears from all others, stops the main thread, and lets all end."""

    def __init__(self, host: str = "127.0.0.1", hint: Callable[[], str] = begin_again) -> None:
        super().__init__(hint)
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
        self._exit_code, self._interrupt = FAILED, signal.SIGTERM

    def sockets(self) -> list[socket.socket]:
        """See `Watch`."""
        return [*super().sockets(), self._listener, *(member.connection for member in self.members.values())]

    def leaving(self) -> None:
        """See `Watch`."""
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
            ends = time.monotonic() + LONG_GRACE
            while not (self._all_done() or self._failure) and time.monotonic() < ends:
                time.sleep(POLL / 10)  # a connection that is closed with an unread message would lose the next one
            self._tell_all(finished=True)
        else:
            interrupted = isinstance(error, KeyboardInterrupt) and not self._failure
            self._end_all(self._exit_code if interrupted and self._cause else FAILED)
        self.close()
        if lost:
            raise ProcessFailed(f"{self._failure}: all processes are ended. {self.hint()}") from error

    def _all_done(self) -> bool:
        """Whether all others need nothing any more; one that this process started may not be heard of yet."""
        return self.processes.keys() <= self.members.keys() and all(member.done for member in self.members.values())

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
            if channel.rank >= 0 and channel.rank not in self.processes and not channel.done:
                self._fail(f"{channel.name} has died")

    def _on_signal(self, number: int) -> None:
        self._stop(number, f"rank 0 (process {os.getpid()})")

    def _stop(self, number: int, name: str) -> None:
        """All stop because of a signal to one process: the main thread as a single one would, the others after it."""
        if self._cause or self._failure:
            return
        self._cause, self._exit_code = f"{name} got {signal.Signals(number).name}", 128 + number
        self._interrupt = signal.Signals(number)
        log.warning("%s: all processes stop", self._cause)
        self._tell_all(stopping=True)
        if not self._is_leaving:
            self._deadline = time.monotonic() + GRACE
            self._interrupt_at = time.monotonic() + AGAIN
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
        if now > self._interrupt_at and not self._is_leaving:
            self._interrupt_at = now + AGAIN
            signal.pthread_kill(self._main_thread, self._interrupt)
        waits = self._cause and not self._failure and signals_are_held()
        if now > self._deadline + (LONG_GRACE - GRACE if waits else 0):
            self._deadline = float("inf")
            log.error(
                "gptask: %s: all processes are ended, as rank 0 did not stop in %.0f seconds. %s",
                self._failure or self._cause, GRACE, self.hint(),
            )  # fmt: skip
            self._end_all(self._exit_code)
            exit_now(self._exit_code)

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


class MemberWatch(Watch):
    """The watch of another process than rank 0: it hands signals on, and ends the process when rank 0 says so or dies.

    Raises `ProcessFailed` where rank 0 does not answer.
    """

    def __init__(self, rank: int, address: str, hint: Callable[[], str] = begin_again) -> None:
        super().__init__(hint)
        self.rank, (host, port, token) = rank, address.rsplit(":", 2)
        try:
            self.channel = Channel(socket.create_connection((host, int(port)), timeout=10))
        except OSError as error:
            raise ProcessFailed(f"rank 0 has died: rank {rank} is ended. {self.hint()}") from error
        self.channel.send(token=token, rank=rank, pid=os.getpid())
        self.selector.register(self.channel.connection, selectors.EVENT_READ, self._hear)
        self._stopping, self._finished = threading.Event(), threading.Event()
        self._handlers: dict[int, Any] = {}

    def sockets(self) -> list[socket.socket]:
        """See `Watch`."""
        return [*super().sockets(), self.channel.connection]

    def start(self) -> None:
        """See `Watch`; the main thread goes on at a signal, since rank 0 needs it until all stop."""
        super().start()
        if self._hears_signals:
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in heard}

    def close(self) -> None:
        """See `Watch`."""
        super().close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def finish(self, error: BaseException | None) -> None:
        """Tell rank 0 that the work is done, and wait for its end; an error, which rank 0 reports, ends the process."""
        if error is None:
            self.channel.send(done=True)
            self._finished.wait()
            self.close()
            return
        if not isinstance(error, UserError):
            if self._stopping.wait(OWN_ERROR_FIRST):  # the error is a consequence
                time.sleep(LONG_GRACE)  # the thread ends the process, once rank 0 has written what it has to
                exit_now(FAILED)
            log.error("rank %d fails", self.rank, exc_info=error)
        self.channel.send(failed=str(error) or type(error).__name__)
        exit_now(FAILED)  # which ends an operation that rank 0 waits in

    def lost_process(self) -> bool:
        """See `MainWatch`; a member writes nothing."""
        return False

    def _on_signal(self, number: int) -> None:
        self.channel.send(signal=number)

    def _hear(self, _: socket.socket) -> None:
        messages = self.channel.receive()
        for message in messages or []:
            if "finished" in message:
                self.channel.done = True
                self._finished.set()
            if "stopping" in message:
                self._stopping.set()
            if "end" in message:
                exit_now(message["end"])
        if messages is None:
            self.selector.unregister(self.channel.connection)
            if not self.channel.done:
                log.error(
                    "gptask: rank 0 has died: rank %d (process %d) is ended. %s", self.rank, os.getpid(), self.hint()
                )
                exit_now(FAILED)


class WaitingWatch(Watch):
    """The watch of a process that another launcher has started, until it has met the others.

    A main thread that waits for them hears no signal: the thread ends the process.
    """

    def __init__(self, rank: int, hint: Callable[[], str] = begin_again) -> None:
        super().__init__(hint)
        self.rank, self._number, self._deadline = rank, 0, float("inf")

    def finish(self, error: BaseException | None) -> None:
        """The work is over; the others are the launcher's to end."""
        self.close()

    def lost_process(self) -> bool:
        """See `MainWatch`; the launcher knows of others."""
        return False

    def _on_signal(self, number: int) -> None:
        if not self._number:
            self._number, self._deadline = number, time.monotonic() + GRACE

    def _look_around(self) -> None:
        if time.monotonic() > self._deadline:
            name = signal.Signals(self._number).name
            log.error(
                "gptask: rank %d (process %d) got %s while it waited for others: it is ended. %s",
                self.rank, os.getpid(), name, self.hint(),
            )  # fmt: skip
            exit_now(128 + self._number)
