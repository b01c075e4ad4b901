"""The HTTP application: its routes, and what every request passes through."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from gptask.errors import UserError
from gptask.serving.http_errors import ApiError
from gptask.serving.openai_routes import openai_router
from gptask.serving.playground import playground_router
from gptask.serving.predict_routes import predict_router
from gptask.serving.state import ServerState


def create_app(state: ServerState) -> FastAPI:
    """Build the application of one server."""
    app = FastAPI(title="gptask")
    app.include_router(predict_router(state))
    app.include_router(openai_router(state))
    app.include_router(playground_router())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.exposition(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(ApiError)
    async def api_error(request: Any, error: ApiError) -> JSONResponse:
        return error.response("")

    @app.exception_handler(UserError)
    async def user_error(request: Any, error: UserError) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error)}}, 422)

    return app
