"""Errors as answers, in the format of OpenAI's API: of routes, of FastAPI, of plugins, and of defects."""

from __future__ import annotations

import logging
import traceback
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptask.errors import UserError
from gptask.serving.http.json_text import json_response
from gptask.serving.http.request_record import record_of
from gptask.serving.models.served_run import ServedRun

log = logging.getLogger("gptask")
TOO_SLOW = "the request took longer than the server's timeout_s allows"
INTERNAL_ERROR = "internal error; the server's log has it under the request id"
PLUGIN_ERROR = "plugin_error"  # the code of an answer to a request that a plugin failed on
EXPECTED_ERRORS = (HTTPException, UserError, TimeoutError, ClientDisconnect)  # no defects of anybody
NOT_PLUGINS = {"gptask", "torch", "builtins", "abc", "typing", "enum"}  # packages of classes that a plugin derives from


class ApiError(HTTPException):
    """An answer with an error status. ``param`` names the field of the request that is wrong.

    It is a `HTTPException` because FastAPI lets these alone pass where a body is read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.status, self.message, self.param, self.kind = status, message, param, kind
        self.code = code
        self.headers: dict[str, str] = headers or {}

    def __str__(self) -> str:
        return self.message

    def entry(self, request_id: str) -> dict[str, Any]:
        """The error as OpenAI's API words it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error | {"request_id": request_id}}

    def response(self, request_id: str) -> Response:
        """The answer."""
        return json_response(self.entry(request_id), self.status, self.headers)


def api_error_of(error: Exception) -> ApiError:
    """The answer to an exception that is not a defect: bad input, a time limit."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(422, str(error), getattr(error, "field", None))
    if isinstance(error, TimeoutError):
        return ApiError(503, TOO_SLOW, kind="server_error", code="timeout", headers={"Retry-After": "1"})
    if isinstance(error, RequestValidationError):
        return _invalid_field(error)
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, error.detail, headers=dict(error.headers or {}))


def _invalid_field(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:]).lstrip(".")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{path} is not supported here", path)
    if first["type"] == "missing":
        return ApiError(400, f"{path or 'the body'} is missing", path or None)
    return ApiError(400, f"{path or 'the body'}: {first['msg']}", path or None)


def plugin_error(error: BaseException, model: ServedRun) -> Exception:
    """Log an exception of a plugin's code, and return the answer, which names plugin and hook and no more.

    An exception that does not come out of the code of the run's task or head is returned as it is.
    """
    classes = (*type(model.run.task).__mro__, *type(model.run.head).__mro__)
    packages = {cls.__module__.partition(".")[0] for cls in classes} - NOT_PLUGINS
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in packages:
            hook, plugin = frame.f_code.co_name, model.run.plugin
            failure = f"task '{plugin.name}' ({plugin.origin}) failed in {hook}(); the plugin's author must fix this"
            log_failure(f"{model.name}: {failure}", error)
            return ApiError(500, failure, kind="server_error", code=PLUGIN_ERROR)
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__} while it was computed")


def log_failure(text: str, error: BaseException) -> None:
    """Log where an exception comes from, without its message: that may hold texts of the request."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", text, type(error).__name__, frames.rstrip())


def internal_error(error: BaseException, request_id: str) -> ApiError:
    """Log a defect, and return the answer, which tells nothing of it."""
    log_failure(f"request {request_id}: internal error; please report it", error)
    return ApiError(500, INTERNAL_ERROR, kind="server_error", code="internal_error")


def install_error_handlers(app: FastAPI) -> None:
    """Have the application answer in OpenAI's format."""

    async def answer(request: Request, error: Exception) -> Response:
        answer = api_error_of(error)
        if type(error) is HTTPException:
            path = f"{request.method} {request.url.path}"
            if error.status_code == HTTPStatus.NOT_FOUND:
                answer.message = f"there is no {path}; /openapi.json lists what there is"
            elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                if request.method == "OPTIONS":
                    return Response(status_code=204, headers=answer.headers)
                answer.message = f"there is no {path}; allowed: {answer.headers.get('Allow', 'other methods')}"
        return answer.response(record_of(request).id)

    for kind in (HTTPException, RequestValidationError, UserError, TimeoutError):
        app.add_exception_handler(kind, answer)


class ErrorAnswers:
    """Answers for exceptions that nothing else answers for: those of the middleware inside, and defects.

    A defect is logged once and answered without its text; an answer that has begun is broken off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except ClientDisconnect:
            return
        except Exception as error:
            if scope["type"] != "http":
                raise
            request_id = record_of(Request(scope)).id
            answer = error if isinstance(error, ApiError) else internal_error(error, request_id)
            if not started:
                await answer.response(request_id)(scope, receive, send)
