"""`/classify` in vLLM's shape, for runs that give a probability to each label of one set."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from gptask.serving.http.http_errors import ApiError
from gptask.serving.http.json_text import json_response
from gptask.serving.http.predicting import MAX_EXAMPLES, predict_examples, run_of
from gptask.serving.http.request_body import RequestModel
from gptask.serving.http.request_record import record_of
from gptask.serving.models.served_run import ServedRun
from gptask.serving.state import ServerState

INPUT = {
    "anyOf": [
        {"type": "string", "pattern": r"\S"},
        {"type": "array", "items": {"type": "string", "pattern": r"\S"}, "minItems": 1, "maxItems": MAX_EXAMPLES},
    ],
    "description": "a text, or a list of texts",
}


class ClassifyRequest(RequestModel):
    """What `/classify` takes."""

    model: str
    input: Annotated[Any, WithJsonSchema(INPUT)]
    user: str | None = Field(None, description="has no effect")


def classify_router(state: ServerState) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["predict"])

    @router.post("/classify")
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        model = run_of(state, request, body.model, "model")
        refuse_other_tasks(model)
        texts = body.input if isinstance(body.input, list) else [body.input]
        if not 0 < len(texts) <= MAX_EXAMPLES:
            raise ApiError(400, f"the input has {len(texts)} texts; expected 1 to {MAX_EXAMPLES}", "input")
        place_of = "input[{}]".format if isinstance(body.input, list) else "input".format
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ApiError(400, f"{place_of(number)} must be a text, got {str(text)[:40]!r}", place_of(number))
        answers = await predict_examples(state, request, model, texts, place_of)
        tables = [answer.prediction.probabilities for answer in answers]
        if any(not table or table.keys() != (tables[0] or {}).keys() for table in tables):
            raise _no_classes(model, "it does not give a probability to each label of one set")
        tokens = record_of(request).tokens_in
        return json_response(
            {
                "id": f"classify-{record_of(request).id}",
                "object": "list",
                "created": int(time.time()),
                "model": model.name,
                "data": [_entry(number, table or {}) for number, table in enumerate(tables)],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
            }
        )

    return router


def _entry(number: int, table: dict[str, float]) -> dict[str, Any]:
    label = max(table, key=table.__getitem__)
    return {"index": number, "label": label, "probs": list(table.values()), "num_classes": len(table)}


def refuse_other_tasks(model: ServedRun) -> None:
    """Raise `ApiError` for a run that writes texts, and for one that reads more than a text."""
    required = [field.name for field in model.run.task.inputs() if field.required]
    if model.run.head.decodes:
        raise _no_classes(model, "it writes texts")
    if len(required) != 1:
        raise _no_classes(model, f"it reads {' and '.join(required)}, not one text")


def _no_classes(model: ServedRun, reason: str) -> ApiError:
    return ApiError(400, f"'{model.name}' can't classify a text: {reason}. Use POST /v1/predict/{model.name}", "model")
