"""`gptask serve`: load, listen, end."""

from __future__ import annotations

import logging

import uvicorn

from gptask.config.schemas import Serve
from gptask.serving.batcher import Batcher
from gptask.serving.http_app import create_app
from gptask.serving.prometheus import ServerMetrics
from gptask.serving.run_registry import RunRegistry
from gptask.serving.state import ServerState

log = logging.getLogger("gptask")


def build_state(options: Serve) -> ServerState:
    """Load what the options name, and start the batcher."""
    metrics = ServerMetrics()
    batcher = Batcher(metrics, options.queue, options.kv_mb * 2**20)
    registry = RunRegistry(options, batcher)
    registry.load()
    batcher.start()
    return ServerState(options, metrics, batcher, registry, ready=True)


def serve(options: Serve) -> None:
    """Serve until the process is told to end."""
    state = build_state(options)
    if options.check:
        return
    uvicorn.run(create_app(state), host=options.host, port=options.port, log_config=None)
    state.batcher.drain(options.timeout_s)
    state.registry.close()
