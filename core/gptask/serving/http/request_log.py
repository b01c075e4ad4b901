"""What every request passes first: its id, its log line and metrics, and the headers of every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptask.serving.http.request_record import KEY, RequestRecord
from gptask.serving.state import ServerState

log = logging.getLogger("gptask")
SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
POLLED = {"/health", "/ready", "/metrics"}  # asked every few seconds by machines: logged at debug level
CLIENT_GONE = 499  # nginx's status for a client that goes away before it has an answer
LOGGED_CHARACTERS = 200  # of a request's body
HEADERS = {  # a route that sets one of them itself, such as the page's Cache-Control, keeps its own
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RequestLog:
    """Gives a request its id and its time limit, and logs how it ended.

    A client that does not read its answer for ``timeout_s`` seconds counts as gone. HEAD is GET without a body.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.state.options.timeout_s
        record = RequestRecord(request_id(scope), time.monotonic() + limit)
        # `computed` reads the deadline, and routes leave "route" in the scope
        inner: Scope = {**scope, KEY: record, "state": {**scope.get("state", {}), "deadline": record.deadline}}
        is_head, status = scope["method"] == "HEAD", CLIENT_GONE
        if is_head:
            inner["method"] = "GET"

        async def logged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = record.id
            elif is_head:
                message = {**message, "body": b""}
            try:
                async with asyncio.timeout(limit):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        try:
            await self.app(inner, receive, logged_send)
        finally:
            seconds = time.monotonic() - record.started
            endpoint = getattr(inner.get("route"), "path", "other")
            self.state.metrics.answered(record.run or None, endpoint, status, seconds)
            self._log(scope, record, status, seconds)

    def _log(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        level = logging.DEBUG if scope["path"] in POLLED else logging.INFO
        endpoint = f"{scope['method']} {quote(scope['path'])[:200]}"
        text = ""
        if self.state.options.log_texts and record.body is not None:
            text = f" body={json.dumps(record.body)[:LOGGED_CHARACTERS]}"
        log.log(
            level, "request %s: %s run=%s status=%d ms=%.1f tokens_in=%d tokens_out=%d%s",
            record.id, endpoint, record.run or "-", status, 1000 * seconds, record.tokens_in, record.tokens_out, text,
        )  # fmt: skip


def request_id(scope: Scope) -> str:
    """The client's X-Request-Id where it is short and plain, else a new one."""
    named = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return str(named.decode()) if SANE_ID.fullmatch(named) else uuid.uuid4().hex
