"""A server's parts on tiny random models, shared by the tests of the routes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def writing_state(backbone_of: Callable[..., Any], random_run: Callable[..., Any]) -> Iterator[Any]:
    """A server with the bare backbone ``tiny``, ``answers`` (a run that writes) and ``mood`` (one that does not)."""
    from gptask.config.schemas import Lora, Serve
    from gptask.plugins.generation_options import GenerationOptions
    from gptask.serving.batcher import Batcher
    from gptask.serving.prometheus import ServerMetrics
    from gptask.serving.run_registry import RunRegistry
    from gptask.serving.served_run import ServedModel, ServedRun
    from gptask.serving.state import ServerState
    from gptask_tasks.sentiment import Sentiment
    from gptask_tasks.summarization import Summarization

    options, metrics = Serve(), ServerMetrics()
    batcher = Batcher(metrics)
    registry = RunRegistry(options, batcher)
    answers = random_run(Summarization(generation=GenerationOptions(stop=["q"])), "llama", Lora(rank=2))
    mood = random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2))
    registry.models = {
        "tiny": ServedModel("tiny", backbone_of("llama", 128).eval()),
        "answers": ServedRun("answers", answers.backbone, answers),
        "mood": ServedRun("mood", mood.backbone, mood),
    }
    batcher.start()
    yield ServerState(options, metrics, batcher, registry, ready=True)
    batcher.drain(10)
