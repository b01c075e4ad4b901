"""Bodies of requests: bounded in size and in time, and JSON that means one thing only."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from email.message import Message as Mail
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptask.serving.http.http_errors import ApiError
from gptask.serving.http.json_text import InvalidJson, parse_json
from gptask.serving.http.request_record import RequestRecord, record_of
from gptask.serving.state import ServerState

LINE_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/jsonlines",
              "application/x-jsonlines"}  # fmt: skip
LARGE_BODY = 2**16  # bytes; a larger one is parsed in a thread
LINGER_SECONDS = 2.0  # in which a client that is refused may read why


class RequestBody:
    """Reads the body of a POST whole when the application first asks for it; a stream of lines passes as it comes.

    The application gets the body as one message, and the record of the request has its JSON.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app, self.limit = app, state.options.body_kb * 1024

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if is_line_stream(scope):
            check_encoding(scope)
            await self.app(scope, receive, send)
            return
        is_read = False

        async def receive_whole() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            record = record_of(Request(scope))
            check_content_type(scope)
            raw = await self._read(scope, receive, record)
            if raw is None:
                return {"type": "http.disconnect"}
            try:
                parsed = parse_json(raw) if len(raw) < LARGE_BODY else await asyncio.to_thread(parse_json, raw)
            except InvalidJson as error:
                raise ApiError(400, str(error), error.param) from error
            record.body = parsed
            return {"type": "http.request", "body": raw, "more_body": False}

        await self.app(scope, receive_whole, send)

    async def _read(self, scope: Scope, receive: Receive, record: RequestRecord) -> bytes | None:
        """The whole body, None where the client went away."""
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > self.limit:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(record.seconds_left):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.limit:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            problem = "the body did not arrive within the server's timeout_s"
            raise ApiError(408, problem, code="timeout", headers={"Connection": "close"}) from None

    def _too_large(self) -> ApiError:
        kilobytes = self.limit // 1024
        return ApiError(
            413,
            f"the body is longer than {kilobytes} kilobytes (the server's body_kb); send less at once, or to "
            "/v1/predict a stream of lines (Content-Type: application/x-ndjson)",
            code="body_too_large",
        )


class RefusedBody:
    """Ends the connection where a request is refused before its large body has come.

    The server would read such a body to its end, however long it is. What comes in the next seconds is read all the
    same: closing at once resets the connection, and a client that still sends would never see the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http" or not has_large_body(scope):
            await self.app(scope, receive, send)
            return
        is_unread, is_refused, is_answered = True, False, False

        async def watched_receive() -> Message:
            nonlocal is_unread
            message = await receive()
            is_unread = message.get("more_body", False)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal is_refused, is_answered
            if message["type"] == "http.response.start":
                is_refused = is_unread and message["status"] >= 400
                if is_refused:
                    MutableHeaders(scope=message)["Connection"] = "close"
            elif is_refused and not message.get("more_body", False):
                is_answered, message = True, {**message, "more_body": True}
            await send(message)

        await self.app(scope, watched_receive, watched_send)
        if is_answered:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while is_unread:
                        await watched_receive()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def has_large_body(scope: Scope) -> bool:
    """Whether a request announces a large body, or one of unknown length."""
    headers = dict(scope["headers"])
    announced = headers.get(b"content-length", b"")
    return b"transfer-encoding" in headers or (announced.isdigit() and int(announced[:20]) > LARGE_BODY)


class RequestModel(BaseModel):
    """The schema of a body; a field that it does not know may be null, as clients send those that are not set."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_unknown_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name in cls.model_fields}


def content_type(scope: Scope) -> tuple[str, str]:
    """The media type of a request's body and its charset, in lower case."""
    header = dict(scope["headers"]).get(b"content-type", b"")
    mail = Mail()
    mail["content-type"] = header.decode("latin-1") or "none/none"
    return mail.get_content_type(), str(mail.get_param("charset", "utf-8")).lower()


def is_line_stream(scope: Scope) -> bool:
    """Whether a request's body is a stream of JSON lines."""
    return scope["path"].startswith("/v1/predict/") and content_type(scope)[0] in LINE_TYPES


def check_content_type(scope: Scope) -> None:
    """Refuse what is not JSON in UTF-8, which a form of a foreign web page could send, too."""
    media_type, _ = content_type(scope)
    if media_type != "application/json" and not media_type.endswith("+json"):
        got = "no content type" if media_type == "none/none" else media_type[:60]
        raise ApiError(415, f"expected Content-Type: application/json, got {got}")
    check_encoding(scope)


def check_encoding(scope: Scope) -> None:
    """Refuse a body that is compressed or in another charset than UTF-8."""
    _, charset = content_type(scope)
    encoding = dict(scope["headers"]).get(b"content-encoding", b"identity").decode("latin-1")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError(415, f"expected JSON in UTF-8, got the charset {charset[:40]}")
    if encoding.lower() != "identity":
        raise ApiError(415, f"expected a plain body, got the Content-Encoding {encoding[:40]}")
