"""What the routes of one server share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gptask.config.schemas import Serve
from gptask.serving.batching.batcher import Batcher
from gptask.serving.models.run_registry import RunRegistry
from gptask.serving.prometheus import ServerMetrics


@dataclass
class ServerState:
    """The parts of one server. ``ready``: everything is loaded and warm, and the server does not end."""

    options: Serve
    metrics: ServerMetrics
    batcher: Batcher
    registry: RunRegistry
    token: str | None = None  # that every request must carry
    ready: bool = False
    failure: BaseException | None = None  # what ended the loading or the batcher, and with it the server
    # for encoding and for `Task.prediction`, which are a plugin's code and may take long
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "encoder"))
    # for explanations, one at a time: each waits for many turns with the batcher
    explainer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "explainer"))
