"""What is served, and how the server is: `/v1/models`, `/health`, `/ready`, `/metrics`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from gptask.serving.http.http_errors import ApiError
from gptask.serving.http.json_text import json_response
from gptask.serving.http.predicting import model_of
from gptask.serving.state import ServerState


def model_router(state: ServerState) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["server"])

    @router.get("/v1/models")
    async def models() -> Response:
        descriptions = [model.description() for model in [*state.registry.models.values()]]
        return json_response({"object": "list", "data": descriptions})

    @router.get("/v1/models/{name}")
    async def model(name: str, request: Request) -> Response:
        return json_response(model_of(state, request, name, "model").description())

    @router.get("/health")
    async def health() -> Response:
        return json_response({"status": "alive"})

    @router.get("/ready")
    async def ready() -> Response:
        if not state.ready:
            message = "the server is loading, warming up, or ending"
            raise ApiError(503, message, kind="server_error", code="not_ready", headers={"Retry-After": "1"})
        return json_response({"status": "ready"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        exposition = await asyncio.to_thread(state.metrics.exposition)
        return Response(exposition, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
