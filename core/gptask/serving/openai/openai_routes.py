"""`/v1/chat/completions` and `/v1/completions` as OpenAI's API has them, whole or as a stream of events.

Log-probabilities are the model's own: before temperature, penalties and response_format.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Send

from gptask.serving.batching.work import WritingWork
from gptask.serving.http.compute import computed, streamed
from gptask.serving.http.http_errors import EXPECTED_ERRORS, ApiError, api_error_of, internal_error
from gptask.serving.http.predicting import model_of
from gptask.serving.http.request_record import RequestRecord, record_of
from gptask.serving.models.served_run import ServedModel, ServedRun
from gptask.serving.openai.constrained import JsonGrammars
from gptask.serving.openai.openai_answers import AnswerFormat, ChatFormat, ChoiceText, usage_of
from gptask.serving.openai.openai_rows import choices_of
from gptask.serving.openai.openai_schemas import (
    ChatRequest,
    CompletionRequest,
    WritingRequest,
    body_schema,
    parse_request,
)
from gptask.serving.state import ServerState

if TYPE_CHECKING:
    from gptask.model.engine.interface import DecodingRow

KEEP_ALIVE_S = 5.0  # of silence, after which a stream says that it is alive
EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # no proxy holds events back
KEEP_ALIVE = ": alive\n\n"


def openai_router(state: ServerState) -> APIRouter:
    """The routes."""
    router, answers = APIRouter(tags=["OpenAI"]), WrittenAnswers(state)

    @router.post("/v1/chat/completions", openapi_extra=body_schema(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer the last message of a conversation."""
        return await answers.respond(request, parse_request(await request.body(), ChatRequest), ChatFormat)

    @router.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue prompts as they stand."""
        return await answers.respond(request, parse_request(await request.body(), CompletionRequest), AnswerFormat)

    return router


class WrittenAnswers:
    """Answers requests for texts."""

    def __init__(self, state: ServerState) -> None:
        self.state, self.grammars = state, JsonGrammars()
        self.preparing = ThreadPoolExecutor(1, "openai")  # tokenizes and compiles, beside the event loop

    async def respond(self, request: Request, asked: WritingRequest, kind: type[AnswerFormat]) -> Response:
        """The answer, or the beginning of a stream; raises `ApiError`."""
        model, record = writing_model(self.state, request, asked.model), record_of(request)
        loop = asyncio.get_running_loop()
        prepared = loop.run_in_executor(self.preparing, choices_of, asked, model, self.grammars)
        choices = await asyncio.wait_for(prepared, record.seconds_left)
        record.tokens_in = usage_of(choices, asked.n)["prompt_tokens"]
        work = WritingWork(model, [choice.row for choice in choices])
        answer = kind(asked.model, asked.top_count is not None)
        if asked.stream:
            stream = TextStream(asked, choices, answer, streamed(self.state, request, work), record)
            await stream.wait()  # what goes wrong before the first token has a status of its own
            return EventStream(stream.events(), headers=EVENT_HEADERS)
        await computed(self.state, request, work)
        usage = usage_of(choices, asked.n)
        record.tokens_out = usage["completion_tokens"]
        pieces = await asyncio.to_thread(lambda: [choice.update() for choice in choices])  # 128 texts take long
        return JSONResponse(answer.answer(pieces, usage))


def writing_model(state: ServerState, request: Request, name: str) -> ServedModel:
    """The model of a name; raises `ApiError` for a name that is not served, and for a run that writes no text."""
    model = model_of(state, request, name, "model")
    if not model.writes:
        task = model.run.plugin.name if isinstance(model, ServedRun) else ""
        message = f"model '{name}' is a run of task '{task}' and writes no text; use POST /v1/predict/{name}"
        raise ApiError(400, message, "model", code="model_not_supported")
    return model


class EventStream(StreamingResponse):
    """Server-sent events; their generator is closed at once where the client goes away."""

    media_type = "text/event-stream"
    body_iterator: AsyncGenerator[str]

    async def stream_response(self, send: Send) -> None:
        """Send all events."""
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


class TextStream:
    """The events of texts that are being written, from the rows of `streamed` as they change."""

    def __init__(
        self,
        asked: WritingRequest,
        choices: Sequence[ChoiceText],
        answer: AnswerFormat,
        rows: AsyncIterator[DecodingRow],
        record: RequestRecord,
    ) -> None:
        self.asked, self.choices, self.answer, self.rows, self.record = asked, choices, answer, rows, record
        self.numbers = {choice.row: number for number, choice in enumerate(choices)}
        self.counts_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self.next_row: asyncio.Future[DecodingRow | None] | None = None

    async def wait(self) -> bool:
        """Wait for the next row that changed; return whether there is one, or the end, within `KEEP_ALIVE_S`.

        Raises what ended the work.
        """
        self.next_row = self.next_row or asyncio.ensure_future(self._next())
        try:
            await asyncio.wait({self.next_row}, timeout=KEEP_ALIVE_S)
        except asyncio.CancelledError:
            await self._close()
            raise
        if self.next_row.done() and self.next_row.exception():
            self.next_row.result()
        return self.next_row.done()

    async def _next(self) -> DecodingRow | None:
        return await anext(self.rows, None)

    async def _close(self) -> None:
        """Drop the work, if it has not ended."""
        if self.next_row:
            self.next_row.cancel()
            await asyncio.wait({self.next_row})
        if isinstance(self.rows, AsyncGenerator):
            await self.rows.aclose()

    async def events(self) -> AsyncGenerator[str]:
        """All events; what goes wrong on the way is the last one."""
        try:
            for number in range(len(self.choices)):
                if opening := self.answer.first_choices(number):
                    yield self._chunk(opening)
            async for event in self._texts():
                yield event
            if self.counts_usage:
                yield _event(self.answer.chunk([], usage=usage_of(self.choices, self.asked.n)))
            yield "data: [DONE]\n\n"
        except ClientDisconnect:
            return
        except Exception as error:
            expected = isinstance(error, EXPECTED_ERRORS)
            answer = api_error_of(error) if expected else internal_error(error, self.record.id)
            yield "event: error\n" + _event(answer.entry(self.record.id))
        finally:
            self.record.tokens_out = usage_of(self.choices, self.asked.n)["completion_tokens"]
            await self._close()

    async def _texts(self) -> AsyncGenerator[str]:
        """The events with texts, and a comment where there is nothing to tell for a while."""
        while True:
            if not await self.wait():
                yield KEEP_ALIVE
                continue
            row, self.next_row = self.next_row.result() if self.next_row else None, None
            if row is None:
                break
            piece = self.choices[self.numbers[row]].update()
            if piece.text or piece.entries or piece.finish:
                yield self._chunk([self.answer.next_choice(self.numbers[row], piece)])

    def _chunk(self, choices: list[dict[str, Any]]) -> str:
        return _event(self.answer.chunk(choices, **({"usage": None} if self.counts_usage else {})))


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False, separators=(',', ':'))}\n\n"
