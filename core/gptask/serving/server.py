"""`gptask serve`: load, listen, end."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import anyio.to_thread
import uvicorn

from gptask.config.schemas import DType, Serve
from gptask.errors import aligned, listing, visible
from gptask.model.backbone.quantizing import require_int4
from gptask.serving.batching.batcher import Batcher
from gptask.serving.http_app import create_app
from gptask.serving.models.backbone_pool import megabytes
from gptask.serving.models.run_registry import RunRegistry
from gptask.serving.models.served_run import ServedRun
from gptask.serving.prometheus import ServerMetrics
from gptask.serving.serve_options import BACKLOG, check_options, listening_socket, read_token, url_of
from gptask.serving.state import ServerState
from gptask.training.process_channel import exit_now

log = logging.getLogger("gptask")
HELPER_THREADS = 2  # that tokenize beside the event loop and the batcher
SECONDS_AFTER_FAILURE = 2  # in which running requests get their errors
SECONDS_TO_DRAIN = 2.0  # for what is computed though nobody waits for it any more
INTERRUPTED = 130
NO_CONNECTION = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SILENT_SECONDS = 60


def new_state(options: Serve) -> ServerState:
    """The parts of a server, its batcher started and nothing loaded."""

    def fail(error: BaseException) -> None:
        ended = RuntimeError("the thread that computes has ended")
        ended.__cause__ = error
        state.ready, state.failure = False, state.failure or ended

    metrics = ServerMetrics()
    batcher = Batcher(metrics, options.queue, options.kv_mb * 2**20, fail)
    state = ServerState(options, metrics, batcher, RunRegistry(options, batcher), read_token(options))
    state.registry.loading = True
    batcher.start()
    return state


def load(state: ServerState) -> None:
    """Load what the options name, compute once with it, and watch the folders from then on."""
    state.registry.load()
    for line in table(state.registry):
        log.info("  %s", line)
    state.registry.watch()


def build_state(options: Serve) -> ServerState:
    """The parts of a server with everything loaded."""
    state = new_state(options)
    load(state)
    state.ready = True
    return state


def table(registry: RunRegistry) -> list[str]:
    """A line for each model: name, task, metric, megabytes; then one for each backbone."""
    rows = [[*model.summary(), f"{megabytes(model.parameter_bytes)} MB"] for model in registry.models.values()]
    for pooled in registry.pool.backbones.values():
        rows.append([f"(backbone {pooled.name})", "", "", f"{megabytes(pooled.bytes)} MB"])
    return aligned(rows, left=3)


def check(options: Serve) -> None:
    """Load everything, print what would be served, and end."""
    state = new_state(options)
    try:
        state.registry.load()
        sys.stdout.write(visible("\n".join(table(state.registry)) + "\n"))
    finally:
        state.batcher.drain(options.timeout_s)


def serve(options: Serve) -> None:
    """Serve until the process is told to end.

    Raises `UserError` for what can't be served, and `RuntimeError` where the thread that computes ends.
    """
    check_options(options)
    if options.dtype is DType.int4:
        require_int4()
    if options.check:
        check(options)
        return
    with listening_socket(options) as listener:
        state = new_state(options)
        Server(state, listener).run(sockets=[listener])
    if state.failure is not None:
        raise state.failure


class Server(uvicorn.Server):
    """Listens at once, and answers that it is alive, while a thread loads; ends by a signal, or by a failure.

    The first SIGTERM or SIGINT lets running requests finish for ``timeout_s`` seconds; a second one ends the process.
    """

    def __init__(self, state: ServerState, listener: socket.socket) -> None:
        errors = logging.getLogger("uvicorn")
        errors.handlers, errors.propagate = log.handlers, False
        super().__init__(
            uvicorn.Config(
                create_app(state),
                log_config=None,
                log_level=logging.ERROR,
                access_log=False,
                server_header=False,
                ws="none",
                backlog=BACKLOG,
                timeout_graceful_shutdown=math.ceil(state.options.timeout_s),
            )
        )
        self.state, self.url = state, url_of(state.options, listener)
        self.loader = threading.Thread(target=self._load, name="loader", daemon=True)

    def _load(self) -> None:
        try:
            load(self.state)
        except BaseException as error:
            if not self.should_exit:  # else the batcher, which has ended, has failed it
                self.state.failure = self.state.failure or error
        else:
            gc.collect()
            gc.freeze()  # a full pass over what stays takes 0.3 s, in which nothing is answered
            self.state.ready = True
            if self.should_exit:  # `handle_exit` has set it before it takes `ready` back
                self.state.ready = False
                return
            models = self.state.registry.models
            runs = sum(isinstance(model, ServedRun) for model in models.values())
            what = f"{runs} run{'s' * (runs != 1)}" if runs else listing(models) if models else "no run yet"
            log.info("gptask serves %s on %s", what, self.url)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, then to load."""
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(HELPER_THREADS, "helper"))
        anyio.to_thread.current_default_thread_limiter().total_tokens = HELPER_THREADS
        await super().startup(sockets)
        self.loader.start()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second."""
        if self.state.failure is not None:
            self.config.timeout_graceful_shutdown = SECONDS_AFTER_FAILURE
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let running requests finish, then end the threads."""
        self.state.ready = False
        if self.state.failure is None:
            log.info("gptask ends; running requests: %d", len(self.server_state.tasks))
        await super().shutdown(sockets)
        watcher_ended = await asyncio.to_thread(self.state.registry.close)
        ended = await asyncio.to_thread(self.state.batcher.drain, SECONDS_TO_DRAIN) and watcher_ended
        if self.state.failure is None and (self.loader.is_alive() or not ended):
            exit_now(0)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; uvicorn's own method ends the process by the signal after that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more requests and finish those that run; at the second signal, end at once."""
        if self.should_exit:
            exit_now(INTERRUPTED)
        self.should_exit, self.state.ready = True, False


class LoopErrors:
    """Logs what nothing else in the event loop catches: that no connection can be accepted, once in a while.

    asyncio tells of that thousands of times a second, as long as clients wait.
    """

    def __init__(self) -> None:
        self.silent_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in NO_CONNECTION):
            loop.default_exception_handler(context)
        elif time.monotonic() >= self.silent_until:
            self.silent_until = time.monotonic() + SILENT_SECONDS
            log.error("no further connection can be accepted: %s; ulimit -n bounds the open files", error.strerror)
