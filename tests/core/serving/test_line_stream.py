"""Streams of lines: answers in order and as they are made, errors in their place, bounded memory."""

import json
import queue
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gptask.serving import line_stream
from gptask.serving.batcher import Batcher, QueueFull

from tests.core.serving.conftest import RunningServer

LINES = {"Content-Type": "application/x-ndjson"}


def post_lines(server: RunningServer, content: Any, name: str = "sentiment") -> list[dict[str, Any]]:
    response = server.http.post(f"/v1/predict/{name}", content=content, headers=LINES)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_bad_line_has_its_error_in_its_place(server: RunningServer) -> None:
    too_long = b'{"text": "' + b"a" * 70_000 + b'"}'
    lines = [b'"good"', b"{", b"", b'{"text": "\xff"}', too_long, b'{"text": ""}', b'{"text": "bad", "id": 4}\r']
    answers = post_lines(server, b"\n".join(lines))
    assert [answer.get("line") for answer in answers] == [None, 2, 3, 4, 5, 6, None]
    messages = [answer["error"]["message"] for answer in answers[1:6]]
    for message, part in zip(
        messages, ["is no JSON", "is empty", "is not UTF-8", "longer than 64 kilobytes", "text: the text is empty"],
        strict=True,
    ):  # fmt: skip
        assert part in message
    assert answers[6]["id"] == 4
    assert post_lines(server, b"") == post_lines(server, b"")[:0]


def test_an_answer_comes_before_the_next_line_is_sent(server: RunningServer) -> None:
    first_answer = threading.Event()

    def lines() -> Iterator[bytes]:
        yield b'"good"\n"ba'
        assert first_answer.wait(30)
        yield b'd"\n'

    with server.http.stream("POST", "/v1/predict/sentiment", content=lines(), headers=LINES) as response:
        # httpx sends the whole body before it reads, so the answer is noticed on the server's side
        assert response.status_code == 200
        assert len(response.read().splitlines()) == 2


@pytest.fixture(autouse=True)
def _answers_are_noticed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    pass
