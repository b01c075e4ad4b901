"""`POST /v1/explain`: which words of an example speak for what a run predicts."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Request
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from gptask.analysis.explain.explainer import Explainer
from gptask.analysis.explain.input_words import input_words
from gptask.analysis.explain.integrated_gradients import PASS_TOKENS
from gptask.config.explain_options import ExplainMethod
from gptask.model.backbone.backbone import GPTBackbone
from gptask.runs.predictor import InputRow, Predictor
from gptask.serving.batching.turns import Turns
from gptask.serving.http.compute import computed
from gptask.serving.http.http_errors import ApiError
from gptask.serving.http.json_text import json_response
from gptask.serving.http.predicting import encode_examples, in_thread, input_rows, outputs_of, run_of
from gptask.serving.http.request_body import RequestModel
from gptask.serving.http.request_record import record_of
from gptask.serving.models.served_run import ServedRun
from gptask.serving.state import ServerState

MAX_TOKENS, MAX_WORDS = 256, 100  # of an example that the server explains: a pass stays as short as others
STEPS, MAX_STEPS = 32, 64  # of integrated gradients, by default and at most
PLACES = 4  # tags or written words that are explained
EXAMPLE = {
    "anyOf": [{"type": "object"}, {"type": "string"}],
    "description": "the fields of the run's task, or a text where it reads a single one, as of /v1/predict",
}
METHODS = [method.value for method in ExplainMethod]
ANSWER = {
    "type": "object",
    "properties": {
        "method": {"enum": METHODS},
        "fields": {"type": "object", "additionalProperties": {"type": "string"}},
        "words": {"type": "array", "description": "field, start and end in characters, text"},
        "prediction": {"description": "the value that the task predicts"},
        "probabilities": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        "maps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "target": {"type": "string", "description": "a class, a tag, start or end, or a written word"},
                    "probability": {"type": "number"},
                    "attributions": {"type": "array", "items": {"type": ["number", "null"]}},
                    "without": {"type": ["array", "null"], "description": "the probability without each word"},
                },
            },
        },
        "truncated": {"type": "integer", "minimum": 0, "description": "tokens of the example that were cut off"},
    },
    "required": ["method", "truncated"],
}


class ExplainRequest(RequestModel):
    """What `/v1/explain` takes."""

    model: str
    example: Annotated[Any, WithJsonSchema(EXAMPLE)]
    method: Annotated[str, WithJsonSchema({"enum": METHODS})] = "ig"
    against: str | None = Field(None, description="a class or tag: why the predicted one and not this one")
    steps: int | None = Field(None, ge=2, le=MAX_STEPS, description="of integrated gradients; 32 by default")


def explain_router(state: ServerState) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["explain"])

    @router.post("/v1/explain", responses={200: {"content": {"application/json": {"schema": ANSWER}}}})
    async def explain(body: ExplainRequest, request: Request) -> Response:
        model = run_of(state, request, body.model, "model")
        if body.method not in METHODS:
            raise ApiError(400, f"method is {body.method[:40]!r}; expected one of {', '.join(METHODS)}", "method")
        if body.steps is not None and body.method != ExplainMethod.ig.value:
            raise ApiError(400, f"steps is for the method ig, not for {body.method}: leave it out", "steps")
        row, truncated = await in_thread(state, request, lambda: _checked_row(request, model, body.example), model)
        explanation = await _explained(state, request, model, body, row)
        return json_response({"method": body.method, "truncated": truncated} | explanation)

    return router


def _checked_row(request: Request, model: ServedRun, example: Any) -> tuple[InputRow, int]:
    """The row of an example, and how many of its tokens are cut off; raises `ApiError` for one that is too long."""
    chunk = encode_examples(model, [example], lambda number: "example")
    tokens = sum(item["length"] for item in chunk.items)
    words = len(input_words(model.run.task, chunk.examples[0]))
    if tokens > MAX_TOKENS or words > MAX_WORDS:
        raise ApiError(
            422,
            f"the example has {words} words in {tokens} tokens; the server explains up to {MAX_WORDS} words in "
            f"{MAX_TOKENS} tokens; `gptask explain` takes longer ones",
            "example",
        )
    record_of(request).tokens_in += tokens
    (row,) = input_rows(model, [example], lambda number: "example")
    return row, sum(item["truncated"] for item in chunk.items)


async def _explained(
    state: ServerState, request: Request, model: ServedRun, body: ExplainRequest, row: InputRow
) -> dict[str, Any]:
    """The explanation as JSON; it is computed in turns with all other work of the batcher."""
    loop = asyncio.get_running_loop()

    def explain() -> dict[str, Any]:
        def submit(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(computed(state, request, work), loop)

        def write(items: Sequence[dict[str, Any]]) -> list[Any]:
            turns.end()
            outputs = asyncio.run_coroutine_threadsafe(outputs_of(state, request, model, items), loop).result()
            turns.next()
            return outputs

        with Turns(model, submit) as turns:
            turns.next()
            explainer = Explainer(
                TurnPredictor(model, turns, write),
                ExplainMethod(body.method),
                body.against,
                body.steps or STEPS,
                PLACES,
                with_attention=body.method == ExplainMethod.attention.value,
            )
            explainer.check()
            values: dict[str, Any] = json.loads(explainer.explain(row).to_json())
            return values

    return await in_thread(state, request, explain, model, state.explainer)


class TurnPredictor(Predictor):
    """Predicts with a served run in the thread of an explanation: before each pass it lets others go first.

    ``write`` writes the texts of a head that decodes, among those of other requests.
    """

    def __init__(self, model: ServedRun, turns: Turns, write: Callable[[Sequence[dict[str, Any]]], list[Any]]) -> None:
        options = replace(model.predictor.options, batch_tokens=min(model.predictor.options.batch_tokens, PASS_TOKENS))
        super().__init__(model.run.task, _in_turns(model.backbone, turns), model.run.head, options)
        self._write = write

    def predict_batch(self, items: Sequence[dict[str, Any]]) -> list[Any]:
        """The head's output for each item."""
        if self.head.decodes:
            return self._write(items)
        with torch.inference_mode():
            return super().predict_batch(items)


def _in_turns(backbone: GPTBackbone, turns: Turns) -> GPTBackbone:
    """A view of a backbone whose passes each begin a turn."""
    view, hidden = copy.copy(backbone), backbone.hidden

    def hidden_in_turn(input_ids: Any = None, *args: Any, embeds: Any = None, **options: Any) -> Any:
        tokens = (input_ids if embeds is None else embeds).shape[1]
        if tokens > PASS_TOKENS:  # for which integrated gradients would set up the layers for longer than a turn
            written = "the example and what is written behind it have"
            raise ApiError(422, f"{written} {tokens} tokens; the server explains up to {PASS_TOKENS}", "example")
        turns.next()
        return hidden(input_ids, *args, embeds=embeds, **options)

    view.hidden = hidden_in_turn  # type: ignore[method-assign]
    return view
