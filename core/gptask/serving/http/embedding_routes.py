"""`/v1/embeddings` in OpenAI's shape and `/pooling` in vLLM's: hidden states of any model, with its adapter."""

from __future__ import annotations

import base64
import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from gptask.serving.batching.work import ScoringWork
from gptask.serving.http.compute import computed
from gptask.serving.http.http_errors import ApiError
from gptask.serving.http.json_text import json_response
from gptask.serving.http.pooling_head import Pooling, pooling_head
from gptask.serving.http.predicting import MAX_EXAMPLES, in_thread, model_of
from gptask.serving.http.request_body import RequestModel
from gptask.serving.http.request_record import record_of
from gptask.serving.models.served_run import ServedModel
from gptask.serving.state import ServerState

TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31}, "minItems": 1}
TEXT = {"type": "string", "minLength": 1}
INPUT = {
    "anyOf": [
        TEXT,
        TOKEN_IDS,
        {"type": "array", "items": {"anyOf": [TEXT, TOKEN_IDS]}, "minItems": 1, "maxItems": MAX_EXAMPLES},
    ],
    "description": "a text, the ids of its tokens, or a list of either",
}
Inputs = Annotated[Any, WithJsonSchema(INPUT)]


class EmbeddingRequest(RequestModel):
    """What `/v1/embeddings` takes: OpenAI's fields, and how states are pooled. Vectors have length 1."""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float, or base64 of float32 numbers")
    pooling: Literal["mean", "last"] | None = Field(None, description="mean of all tokens' states, or the last one's")
    user: str | None = Field(None, description="has no effect")


class PoolingRequest(RequestModel):
    """What `/pooling` takes, in vLLM's shape: states of every token (token_embed), or pooled (embed)."""

    model: str
    input: Inputs
    task: Literal["token_embed", "embed"] | None = Field(None, description="token_embed: a vector a token")
    pooling: Literal["mean", "last"] | None = Field(
        None, description="of task=embed; the last token's state by default"
    )
    normalize: bool | None = Field(None, description="scale vectors to length 1")
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = Field(None, description="has no effect")


def embedding_router(state: ServerState) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["states"])

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        model = model_of(state, request, body.model, "model")
        vectors, tokens = await _vectors(state, request, model, body.input, body.pooling or "mean", True)
        encoded = [_encoded(vector, body.encoding_format) for vector in vectors]
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(encoded)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": model.name, "usage": usage})

    @router.post("/pooling")
    async def pooling(body: PoolingRequest, request: Request) -> Response:
        model = model_of(state, request, body.model, "model")
        kind: Pooling = (body.pooling or "last") if body.task == "embed" else "all"
        if kind == "all" and body.pooling:
            raise ApiError(400, "pooling is for task=embed; token_embed gives the state of every token", "pooling")
        normalize = body.normalize if body.normalize is not None else kind != "all"
        vectors, tokens = await _vectors(state, request, model, body.input, kind, normalize)
        encoded = [_encoded(vector, body.encoding_format) for vector in vectors]
        return json_response(
            {
                "id": f"pool-{record_of(request).id}",
                "object": "list",
                "created": int(time.time()),
                "model": model.name,
                "data": [{"index": n, "object": "pooling", "data": vector} for n, vector in enumerate(encoded)],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
            }
        )

    return router


async def _vectors(
    state: ServerState, request: Request, model: ServedModel, inputs: Any, pooling: Pooling, normalize: bool
) -> tuple[list[Any], int]:
    """The vectors of texts or token ids, and how many tokens were read."""
    items = await in_thread(state, request, lambda: encoded_inputs(model, inputs), model)
    tokens = sum(item["length"] for item in items)
    record_of(request).tokens_in += tokens
    work = ScoringWork(model, items, pooling_head(model, pooling, normalize))
    return list(await computed(state, request, work)), tokens


def _encoded(vector: Any, encoding_format: str | None) -> Any:
    if encoding_format != "base64":
        return vector
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def encoded_inputs(model: ServedModel, inputs: Any) -> list[dict[str, Any]]:
    """Items for `collate` of one text, the ids of one, or a list of either; raises `ApiError` that names a bad one."""
    is_list = isinstance(inputs, list) and not (inputs and all(_is_id(part) for part in inputs))
    if is_list and not 0 < len(inputs) <= MAX_EXAMPLES:
        raise ApiError(400, f"the input has {len(inputs)} entries; expected 1 to {MAX_EXAMPLES}", "input")
    places = [f"input[{number}]" for number in range(len(inputs))] if is_list else ["input"]
    return [_item(model, value, place) for value, place in zip(inputs if is_list else [inputs], places, strict=True)]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _item(model: ServedModel, value: Any, place: str) -> dict[str, Any]:
    backbone = model.backbone
    if isinstance(value, str):
        ids = backbone.tokenizer(value)["input_ids"] if value else []
    elif isinstance(value, list) and all(map(_is_id, value)):
        ids = value
        size = backbone.model.get_input_embeddings().num_embeddings
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise ApiError(400, f"{place} has the token id {wrong[0]}; there are ids from 0 to {size - 1}", place)
    else:
        raise ApiError(400, f"{place} must be a text or a list of token ids, got {str(value)[:40]!r}", place)
    if not ids:
        raise ApiError(400, f"{place} is empty", place)
    if len(ids) > backbone.context:
        message = f"{place} has {len(ids)} tokens; the model reads at most {backbone.context}"
        raise ApiError(422, message, place, code="context_length_exceeded")
    item = {"ids": ids, "target": None, "label": None, "extra": None, "learned": []}
    return item | {"length": len(ids), "truncated": 0}
