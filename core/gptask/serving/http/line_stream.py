"""A stream of JSON lines in, a stream of answers out: in order, as they are made, in bounded memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gptask.serving.http.http_errors import EXPECTED_ERRORS, ApiError, api_error_of, internal_error
from gptask.serving.http.json_text import InvalidJson, json_bytes, parse_json
from gptask.serving.http.predicting import predict_examples
from gptask.serving.http.request_record import KEY, RequestRecord, record_of
from gptask.serving.models.served_run import ServedRun
from gptask.serving.state import ServerState

WINDOW = 64  # most lines that are in the works at once


class LineStream(Response):
    """Answers each line of the request's body by a line.

    The answer to a bad line is ``{"error": ..., "line": number}``, and the others go on. A full queue holds the stream
    up and is no error. (Starlette's StreamingResponse waits for a disconnect by reading the body's messages away.)
    """

    media_type = "application/x-ndjson"

    def __init__(self, state: ServerState, model: ServedRun) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.state, self.model = state, model
        self.limit = state.options.body_kb * 1024
        window = max(1, min(WINDOW, state.options.queue // 4))
        self.answers: asyncio.Queue[asyncio.Task[bytes] | ApiError | None] = asyncio.Queue(window)
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read lines and write answers at the same time, until the lines end or the client goes away."""
        is_gone = False
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(group, scope, receive))
                number = 0
                while (answer := await self.answers.get()) is not None:
                    number += 1
                    record = record_of(Request(scope))
                    body = line_error(answer, number, record.id) if isinstance(answer, ApiError) else await answer
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                reader.cancel()
        except* ClientDisconnect:
            is_gone = True
        if not is_gone:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self, group: asyncio.TaskGroup, scope: Scope, receive: Receive) -> None:
        """Start an answer for each line; then wait for the client to go away."""
        number = 0
        try:
            async for line in self._lines(receive):
                number += 1
                await self.answers.put(group.create_task(self._answer(scope, number, line)))
        except TimeoutError:
            problem = f"no line came for {self.state.options.timeout_s:g} seconds, the server's timeout_s"
            await self.answers.put(ApiError(408, problem, code="timeout"))
        await self.answers.put(None)
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        raise ClientDisconnect

    async def _lines(self, receive: Receive) -> AsyncIterator[bytes | None]:
        """The lines of the body without their ends; None for one that is too long, which is not held."""
        rest, is_too_long, more = bytearray(), False, True
        while more:
            async with asyncio.timeout(self.state.options.timeout_s):
                message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                raise ClientDisconnect
            more = message.get("more_body", False)
            *ends, last = message.get("body", b"").split(b"\n")
            for end in ends:
                rest += end
                yield None if is_too_long or len(rest) > self.limit else bytes(rest.rstrip(b"\r"))
                rest, is_too_long = bytearray(), False
            rest += last
            if len(rest) > self.limit:
                rest, is_too_long = bytearray(), True
        if rest or is_too_long:
            yield None if is_too_long else bytes(rest.rstrip(b"\r"))

    async def _answer(self, scope: Scope, number: int, line: bytes | None) -> bytes:
        """The answer to one line, which has the time limit of a request."""
        whole = record_of(Request(scope))
        if line is None:
            problem = f"the line is longer than {self.limit // 1024} kilobytes (the server's body_kb)"
            return line_error(ApiError(413, problem, code="body_too_large"), number, whole.id)
        record = RequestRecord(whole.id, time.monotonic() + self.state.options.timeout_s)
        own_scope = {**scope, KEY: record, "state": {"deadline": record.deadline}}
        request = Request(own_scope, self._receive_end)
        try:
            fields = await self._predicted(request, record, parse_json(line, "the line"))
        except InvalidJson as error:
            return line_error(ApiError(400, str(error), error.param), number, record.id)
        except ClientDisconnect:
            raise
        except EXPECTED_ERRORS as error:
            return line_error(api_error_of(error), number, record.id)
        except Exception as error:
            return line_error(internal_error(error, record.id), number, record.id)
        finally:
            whole.tokens_in += record.tokens_in
            whole.tokens_out += record.tokens_out
        return json_bytes(fields) + b"\n"

    async def _predicted(self, request: Request, record: RequestRecord, example: Any) -> dict[str, Any]:
        """The fields of one answer; a full queue is waited for until the line's time is over."""
        pause = 0.05
        while True:
            try:
                (answer,) = await predict_examples(self.state, request, self.model, [example], lambda number: "")
                return answer.fields()
            except EXPECTED_ERRORS as error:
                if isinstance(error, ClientDisconnect) or api_error_of(error).status != 429:
                    raise
                if record.seconds_left < pause:
                    raise
            await asyncio.sleep(pause)
            pause = min(1.0, 2 * pause)

    async def _receive_end(self) -> Message:
        """What a line's own request receives: nothing before the client goes away."""
        await self.gone.wait()
        return {"type": "http.disconnect"}


def line_error(error: ApiError, number: int, request_id: str) -> bytes:
    """The answer to a line that has no prediction."""
    return json_bytes(error.entry(request_id) | {"line": number}) + b"\n"
