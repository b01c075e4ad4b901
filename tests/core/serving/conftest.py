"""A server of tiny random runs of every built-in task on one backbone, and of tasks that fail, over a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gptask import GenerationOptions
from gptask.config.schemas import DType, Lora, Pretrained, Serve
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.question_generation import QuestionGeneration
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.summarization import Summarization
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

TASKS: dict[str, Callable[[], Any]] = {  # by the name of the run that the server has
    "topics": lambda: Classification(labels=["refund", "delivery", "other"]),
    "several": lambda: Classification(labels=["joy", "anger"], multi_label=True, threshold=0.4),
    "sentiment": lambda: Sentiment(labels=["negative", "positive"]),
    "qa": lambda: QuestionAnswering(generation=_short()),
    "spans": lambda: QuestionAnswering(answer=AnswerForm.span, stride=16),
    "summaries": lambda: Summarization(generation=_short()),
    "french": lambda: Translation(generation=_short()),
    "chat": lambda: TextGeneration(generation=_short()),
    "lm": lambda: LanguageModeling(),
    "tags": lambda: TokenTagging(types=["PER", "LOC"], plain=False),
    "questions": lambda: QuestionGeneration(generation=_short()),
    "beams": lambda: Translation(generation=GenerationOptions(max_new_tokens=4, num_beams=2)),
}
EXAMPLES: dict[str, list[Any]] = {  # of each run, one of them longer than the model reads, with the answers to expect
    "topics": [{"text": "where is my parcel?"}, {"id": "b", "text": "good film " * 200}, "give me my money back"],
    "several": [{"text": "it is very good"}, {"text": "bad"}],
    "sentiment": ["a good film", {"text": "a bad film", "id": 7}],
    "qa": [{"context": "the quick brown fox jumps", "question": "who jumps?"}],
    "spans": [
        {"context": "the quick brown fox jumps", "question": "who jumps?"},
        {"context": "the lazy dog. " * 60, "question": "who is lazy?"},
    ],
    "summaries": ["the quick brown fox jumps over the lazy dog.", {"document": "is this film good? " * 60}],
    "french": ["good", {"source": "the lazy dog"}],
    "chat": [
        "is this film good?",
        {"messages": [{"role": "user", "content": "good or bad?"}]},
        {"instruction": "say good", "input": "", "id": "c"},
    ],
    "lm": ["the quick brown fox jumps over the lazy dog. " * 20, "这部电影很好"],
    "tags": [{"tokens": ["the", "lazy", "dog"]}, {"tokens": "is this film good?"}, {"tokens": ["fox"] * 150}],
    "questions": [{"context": "the quick brown fox jumps", "answers": ["fox"], "answer_start": [16]}],
    "beams": ["good", "the lazy dog"],
}
FIXED = {"topics": "text", "several": "text", "sentiment": "text", "lm": "text", "french": "source", "beams": "source",
         "summaries": "document"}  # fmt: skip


def _short() -> GenerationOptions:
    return GenerationOptions(max_new_tokens=5)


@dataclass
class RunningServer:
    """A server in this process that listens on a port of its own; ``http`` is a client of it."""

    state: Any
    app: Any
    port: int
    http: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def predict(self, name: str, example: Any, **options: Any) -> httpx2.Response:
        """The answer to one example, or to a list."""
        headers = {"Content-Type": "application/json"} | options.pop("headers", {})
        return self.http.post(f"/v1/predict/{name}", content=json.dumps(example), headers=headers, **options)

    def connect(self) -> socket.socket:
        """A connection, which fails where nothing comes for a minute."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def raw(self, data: bytes) -> bytes:
        """What the server sends in answer to bytes up to the end of the connection, which they must ask for."""
        with self.connect() as connection:
            connection.sendall(data)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer


@contextmanager
def running(state: Any) -> Iterator[RunningServer]:
    """A server of this state, from here to the end of the block."""
    import uvicorn
    from gptask.serving.http_app import create_app

    app = create_app(state)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a client that connects early waits in its queue
        config = uvicorn.Config(app, log_config=None, server_header=False, lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        running_server = RunningServer(state, app, listener.getsockname()[1])
        try:
            yield running_server
        finally:
            running_server.http.close()
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def served_runs(random_run: Callable[..., Any]) -> dict[str, Any]:
    """The runs by name, each in memory with a model of its own as it was saved; all are on one tiny Llama."""
    return {
        name: random_run(make(), "llama", Lora(rank=2, top=1.0), seed=number)
        for number, (name, make) in enumerate(TASKS.items())
    }


@pytest.fixture(scope="session")
def serve_options(tiny_model: Callable[..., Path], served_runs: dict[str, Any]) -> Callable[..., Serve]:
    """``serve_options(queue=1)``: the options of a server of all runs."""

    def make(**options: Any) -> Serve:
        backbone = Pretrained(source=str(tiny_model("llama", 128)), dtype=DType.float32, license="MIT")
        values = {"runs": [f"{name}:{run.folder}" for name, run in served_runs.items()], "backbone": backbone}
        return Serve(**(values | options))

    return make


@pytest.fixture(scope="session")
def server(serve_options: Callable[..., Serve]) -> Iterator[RunningServer]:
    """A server of all runs; no test may change it."""
    from gptask.serving.server import build_state

    with running(build_state(serve_options(body_kb=64))) as running_server:
        yield running_server


@pytest.fixture
def with_run(server: RunningServer, random_run: Callable[..., Any]) -> Callable[..., Any]:
    """``with with_run(task) as server:`` a server that has a run of this task, too, under the name "plugin"."""
    from copy import copy
    from dataclasses import replace

    from gptask.serving.models.served_run import ServedRun

    @contextmanager
    def make(task: Any) -> Iterator[RunningServer]:
        run = random_run(task, "llama", Lora(rank=2, top=1.0))
        registry = copy(server.state.registry)
        registry.models = {**registry.models, "plugin": ServedRun("plugin", run.backbone, run)}
        with running(replace(server.state, registry=registry)) as other:
            yield other

    return make


@pytest.fixture
def with_options(server: RunningServer) -> Callable[..., Any]:
    """``with with_options(token="secret", timeout_s=1) as server:`` the same models behind another HTTP side."""
    from dataclasses import replace

    @contextmanager
    def make(token: str | None = None, ready: bool = True, **options: Any) -> Iterator[RunningServer]:
        changed = replace(server.state.options, **options)
        with running(replace(server.state, options=changed, token=token, ready=ready)) as other:
            yield other

    return make


@pytest.fixture(scope="session")
def writing_state(backbone_of: Callable[..., Any], random_run: Callable[..., Any]) -> Iterator[Any]:
    """A server with the bare backbone ``tiny``, ``answers`` (a run that writes) and ``mood`` (one that does not)."""
    from gptask.config.schemas import Lora, Serve
    from gptask.plugins.generation_options import GenerationOptions
    from gptask.serving.batching.batcher import Batcher
    from gptask.serving.models.run_registry import RunRegistry
    from gptask.serving.models.served_run import ServedModel, ServedRun
    from gptask.serving.prometheus import ServerMetrics
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
