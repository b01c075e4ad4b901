"""The HTTP application: its routes, and what every request passes through."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from gptask.serving.http.access import Access
from gptask.serving.http.classify_routes import classify_router
from gptask.serving.http.embedding_routes import embedding_router
from gptask.serving.http.explain_routes import explain_router
from gptask.serving.http.http_errors import ErrorAnswers, install_error_handlers
from gptask.serving.http.model_routes import model_router
from gptask.serving.http.openapi_schema import install_openapi
from gptask.serving.http.playground import playground_router
from gptask.serving.http.predict_routes import predict_router
from gptask.serving.http.request_body import RefusedBody, RequestBody
from gptask.serving.http.request_log import RequestLog
from gptask.serving.openai.openai_routes import openai_router
from gptask.serving.state import ServerState


def create_app(state: ServerState) -> FastAPI:
    """Build the application of one server.

    FastAPI's pages /docs and /redoc load their scripts from the network, so they are off: /openapi.json serves tools,
    and the page at / serves people.
    """
    app = FastAPI(
        title="gptask",
        version=version("gptask"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (predict_router, explain_router, openai_router, embedding_router, classify_router, model_router):
        app.include_router(router(state))
    app.include_router(playground_router())
    install_error_handlers(app)
    install_openapi(app, state)
    # from the innermost to the outermost; all are plain ASGI, so that streams and disconnects pass
    app.add_middleware(RequestBody, state=state)
    app.add_middleware(Access, state=state)
    app.add_middleware(ErrorAnswers)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=state.options.cors,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's JavaScript client sends some of its own
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    app.add_middleware(RequestLog, state=state)
    app.add_middleware(RefusedBody)
    return app
