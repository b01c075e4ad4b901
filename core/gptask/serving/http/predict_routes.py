"""`POST /v1/predict/<run>`: a task's own fields in, its predictions out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gptask.serving.http.http_errors import ApiError
from gptask.serving.http.json_text import json_response
from gptask.serving.http.line_stream import LineStream
from gptask.serving.http.predicting import MAX_EXAMPLES, predict_examples, run_of
from gptask.serving.http.request_body import is_line_stream
from gptask.serving.http.request_record import record_of
from gptask.serving.state import ServerState


def predict_router(state: ServerState) -> APIRouter:
    """The routes; `openapi_schema` describes one for each run."""
    router = APIRouter()

    @router.post("/v1/predict/{name}", include_in_schema=False)
    async def predict(name: str, request: Request) -> Response:
        model = run_of(state, request, name)
        if is_line_stream(request.scope):
            return LineStream(state, model)
        await request.body()
        examples: Any = record_of(request).body
        if not isinstance(examples, list):
            (answer,) = await predict_examples(state, request, model, [examples], lambda number: "")
            return json_response(answer.fields())
        if len(examples) > MAX_EXAMPLES:
            raise ApiError(
                422,
                f"the list has {len(examples)} examples; at most {MAX_EXAMPLES} are taken at once: send several "
                "requests, or a stream of lines (Content-Type: application/x-ndjson)",
                "examples",
            )
        answers = await predict_examples(state, request, model, examples, "examples[{}]".format)
        return json_response([answer.fields() for answer in answers])

    return router
