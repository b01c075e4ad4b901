"""Streams of lines: answers in order and as they are made, errors in their place, bounded memory."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from gptask.plugins.types import Prediction
from gptask.serving.http import line_stream
from gptask.serving.http.http_errors import ApiError
from gptask.serving.http.predicting import Answered
from gptask.serving.http.request_record import KEY, RequestRecord

from tests.core.serving.conftest import RunningServer

LINES = {"Content-Type": "application/x-ndjson"}
HEAD = b"POST /v1/predict/sentiment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"


def post_lines(server: RunningServer, content: bytes, name: str = "sentiment") -> list[dict[str, Any]]:
    response = server.http.post(f"/v1/predict/{name}", content=content, headers=LINES)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_a_bad_line_has_its_error_in_its_place(server: RunningServer) -> None:
    too_long = b'{"text": "' + b"a" * 70_000 + b'"}'
    lines = [b'"good"', b"{", b"", b'{"text": "\xff"}', too_long, b'{"text": ""}', b'{"text": "bad", "id": 4}\r']
    answers = post_lines(server, b"\n".join(lines))
    assert [answer.get("line") for answer in answers] == [None, 2, 3, 4, 5, 6, None]
    parts = ["is no JSON", "is empty", "is not UTF-8", "longer than 64 kilobytes", "text: the text is empty"]
    for answer, part in zip(answers[1:6], parts, strict=True):
        assert part in answer["error"]["message"]
    assert answers[6]["id"] == 4
    assert post_lines(server, b"") == []
    assert len(post_lines(server, b'"good"\n"bad"\n')) == 2


def test_an_answer_comes_before_the_next_line_is_sent(server: RunningServer) -> None:
    with server.connect() as connection, connection.makefile("rb") as answers:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b'"good"\n"ba'))
        while b"prediction" not in (line := answers.readline()):
            assert line
        connection.sendall(chunk(b'd"\n') + b"0\r\n\r\n")
        while b"prediction" not in (line := answers.readline()):
            assert line


def run_stream(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, predict: Any, lines: int
) -> tuple[list[dict[str, Any]], int]:
    """The answers to numbered lines, and how many lines were at most read and not answered."""
    monkeypatch.setattr(line_stream, "predict_examples", predict)
    received, answers, most = 0, list[dict[str, Any]](), 0

    async def receive() -> Any:
        nonlocal received, most
        if received == lines:
            await asyncio.Event().wait()
        received += 1
        most = max(most, received - len(answers))
        return {"type": "http.request", "body": b'{"n": %d}\n' % received, "more_body": received < lines}

    async def send(message: Any) -> None:
        if message.get("body"):
            answers.append(json.loads(message["body"]))

    stream = line_stream.LineStream(server.state, server.state.registry.get("sentiment"))
    asyncio.run(stream({KEY: RequestRecord("a", 1e12), "type": "http"}, receive, send))
    return answers, most


def test_a_long_stream_passes_in_order_and_with_few_lines_at_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def predict(state: Any, request: Any, model: Any, examples: Any, place_of: Any) -> Any:
        for _ in range(examples[0]["n"] % 3):  # lines overtake each other
            await asyncio.sleep(0)
        return [Answered(Prediction(examples[0]["n"]), 0, None)]

    answers, most = run_stream(server, monkeypatch, predict, 5000)
    assert [answer["prediction"] for answer in answers] == list(range(1, 5001))
    assert most <= line_stream.WINDOW + 3


def test_a_full_queue_holds_a_stream_up_and_a_defect_is_one_lines_error(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = set[int]()

    async def predict(state: Any, request: Any, model: Any, examples: Any, place_of: Any) -> Any:
        number = examples[0]["n"]
        if number == 2 and number not in refused:
            refused.add(number)
            raise ApiError(429, "4 requests wait already: try again later")
        if number == 3:
            raise ZeroDivisionError("secret")
        return [Answered(Prediction(number), 0, None)]

    answers, _ = run_stream(server, monkeypatch, predict, 4)
    assert [answer.get("prediction") for answer in answers] == [1, 2, None, 4]
    assert (answers[2]["line"], answers[2]["error"]["type"]) == (3, "server_error")
    assert "secret" not in json.dumps(answers)


def test_a_client_that_goes_away_ends_its_stream(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def predict(state: Any, request: Any, model: Any, examples: Any, place_of: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(line_stream, "predict_examples", predict)
    with server.connect() as connection:
        connection.sendall(HEAD + b'Content-Length: 7\r\n\r\n"good"\n')
        assert begun.wait(30)
    assert cancelled.wait(30)


def test_a_stream_without_lines_ends_at_the_time_limit(with_options: Callable[..., Any]) -> None:
    with with_options(timeout_s=0.2) as server:
        answer = server.raw(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b'"go'))
    assert b"200 OK" in answer
    assert b"no line came for 0.2 seconds" in answer
