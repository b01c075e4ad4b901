"""What the watches of a run's processes are made of: messages, a thread that hears of signals, an end at once."""

from __future__ import annotations

import json
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from gptask.training.private import end_process

POLL = 0.2  # seconds between two looks at what tells nothing by itself
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Channel:
    """Messages between two processes: one JSON object a line. ``name`` is that of the process at the other end."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.rank, self.name = connection, -1, "a process"
        self.done = False  # whether the other process needs nothing any more
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


def begin_again() -> str:
    """How to go on where nothing is kept."""
    return "The same command begins again."


class Watch:
    """What the threads of all processes share: they hear of signals whatever the main thread does."""

    def __init__(self, hint: Callable[[], str] = begin_again) -> None:
        self.hint = hint  # how to go on once the processes are ended
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


def exit_now(code: int) -> NoReturn:
    """End the process at once: its threads may be in operations that never return."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # it may be closed, full, or being written
            stream.flush()
    end_process(code)
