"""A server of runs in this process, for what talks to one: it answers like `gptask serve`, and fails as it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from gptask import DataError
from gptask.config.conversion import from_plain
from gptask.config.schemas import Data
from gptask.data.columns import Columns
from gptask.runs.predictions_file import prediction_fields
from gptask.runs.predictor import Predictor, read_inputs
from gptask.runs.rows_in_memory import rows_in_memory
from gptask.serving.remote_run import input_description
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class ServedRuns:
    """Runs by name behind HTTP.

    ``faults`` are answers that the next requests get instead of their own, ``lines`` what each prediction was asked
    for, ``change`` may replace the bytes of an answer's line.
    """

    fine = Response()  # among the faults: this request gets its own answer

    def __init__(self, runs: dict[str, Any], token: str | None = None) -> None:
        self.runs, self.token = runs, token
        self.faults: list[Response] = []
        self.lines: list[str] = []
        self.entries: list[dict[str, Any]] = [self.entry(name) for name in runs]
        self.change: Callable[[bytes], bytes] = bytes
        self.requests = 0

    def entry(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        description = input_description(run.task, run.config["data"])
        return {"id": name, "object": "model", "task": run.plugin.name, "writes": run.head.decodes, **description}

    def app(self) -> Starlette:
        routes = [
            Route("/ready", self._ready),
            Route("/v1/models", self._models),
            Route("/v1/predict/{name}", self._predict, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    def _refused(self, request: Request) -> Response | None:
        self.requests += 1
        if self.faults and (fault := self.faults.pop(0)) is not self.fine:
            return fault
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return refusal(401, "who are you?")
        return None

    async def _ready(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"status": "ready"})

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"object": "list", "data": self.entries})

    async def _predict(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        lines = (await request.body()).decode().split("\n")[:-1]
        self.lines += lines
        run = self.runs[request.path_params["name"]]
        return StreamingResponse(self._answers(run, lines), media_type="application/x-ndjson")

    def _answers(self, run: Any, lines: list[str]) -> Iterator[bytes]:
        columns = Columns(run.task, Data(labels=None), run.task.inputs())
        predictor = Predictor(run.task, run.backbone, run.head, from_plain("data", run.config["data"]))
        for number, line in enumerate(lines, 1):
            (entry,) = read_inputs(rows_in_memory(json.loads(line), columns), columns, "example")
            chunk = predictor.encode([entry])
            (prediction,) = predictor.results(chunk, predictor._predict_items(chunk.items))
            answer = {"error": {"message": str(prediction), "param": None}, "line": number}
            if not isinstance(prediction, DataError):
                answer = prediction_fields(prediction) | {"truncated": sum(item["truncated"] for item in chunk.items)}
            yield self.change(json.dumps(answer, ensure_ascii=False).encode() + b"\n")


def refusal(status: int, message: str, **headers: str) -> Response:
    """An error in OpenAI's format."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": {"message": message, "type": "t", "param": None}}, status, headers=named)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an app that is served by a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    started = threading.Event()
    startup = server.startup

    async def announced(*args: Any, **options: Any) -> None:
        await startup(*args, **options)
        started.set()

    server.startup = announced  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert started.wait(20)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
