"""Bodies: bounded in size and time, whatever the client announces; JSON alone."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from gptask.serving.http import request_body
from gptask.serving.http.request_body import is_line_stream

from tests.core.serving.conftest import RunningServer

PATHS = ("/v1/predict/sentiment", "/v1/embeddings", "/classify", "/pooling")
POST = b"POST /v1/predict/sentiment HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
JSON = b"Content-Type: application/json\r\n"


def error_of(answer: bytes, status: int) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    return body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"text": ', "application/json", 400),
        (b"", "application/json", 400),
        (b'{"text": "\xff"}', "application/json", 400),
        (b'{"text": NaN}', "application/json", 400),
        (b'{"a": "good", "a": "bad"}', "application/json", 400),
        (b"[" * 5000, "application/json", 400),
        (b'"\\ud800"', "application/json", 400),
        (b'"good"', "text/plain", 415),
        (b"text=good", "application/x-www-form-urlencoded", 415),
        (b'"good"', "application/json; charset=latin-1", 415),
        (b'"good"', None, 415),
        (b'"' + b"a" * 70_000 + b'"', "application/json", 413),
    ],
)
def test_a_bad_body_is_refused(
    path: str, content: bytes, content_type: str | None, status: int, server: RunningServer
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = server.http.post(path, content=content, headers=headers)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["request_id"] == response.headers["X-Request-Id"]


def test_a_packed_body_is_refused(server: RunningServer) -> None:
    for headers in (
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "gzip", "Content-Type": "application/x-ndjson"},
        {"Content-Type": "application/x-ndjson; charset=utf-16"},
    ):
        assert server.predict("sentiment", "good", headers=headers).status_code == 415


def test_json_types_with_a_suffix_are_json(server: RunningServer) -> None:
    for media_type in ("application/json; charset=UTF-8", "application/problem+json", "APPLICATION/JSON"):
        assert server.predict("sentiment", "good", headers={"Content-Type": media_type}).status_code == 200


def test_a_body_is_bounded_by_what_is_announced_and_by_what_comes(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "LINGER_SECONDS", 0.05)
    announced = server.raw(POST + JSON + b"Content-Length: 9999999999\r\n\r\n")
    assert b"longer than 64 kilobytes" in error_of(announced, 413)
    part = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    assert b"longer than 64 kilobytes" in error_of(
        server.raw(POST + JSON + b"Transfer-Encoding: chunked\r\n\r\n" + 3 * part), 413
    )


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (b"POST /v1/predict/sentiment", JSON, 413),
        (b"POST /v1/predict/none", b"Content-Type: application/x-ndjson\r\n", 404),
        (b"PUT /v1/models", JSON, 405),
    ],
)
def test_a_body_that_never_ends_ends_with_its_refusal(
    request_line: bytes, headers: bytes, status: int, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "LINGER_SECONDS", 0.05)
    head = request_line + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"Content-Length: 99999999999\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head)
        answer = b""
        while chunk := connection.recv(65536):  # up to the end of the connection
            answer += chunk
            with suppress(OSError):
                connection.sendall(b" " * 65536)
    assert error_of(answer, status)
    assert b"connection: close" in answer.lower()


def test_a_client_that_sends_all_of_a_refused_body_gets_the_answer(server: RunningServer) -> None:
    response = server.predict("sentiment", "good " * 1_000_000)
    assert (response.status_code, response.headers["Connection"]) == (413, "close")
    assert "Connection" not in server.predict("none", "good").headers  # of a small body


def test_a_large_body_below_the_limit_is_read(with_options: Callable[..., Any]) -> None:
    with with_options(body_kb=512) as server:
        assert server.predict("sentiment", "good " * 20_000).json()["truncated"] > 10_000


def test_a_slow_body_ends_at_the_time_limit(with_options: Callable[..., Any]) -> None:
    with with_options(timeout_s=0.2) as server:
        answer = server.raw(POST + JSON + b'Content-Length: 20\r\n\r\n"go')
    assert b"did not arrive" in error_of(answer, 408)
    assert b"connection: close" in answer.lower()


def test_lines_are_for_predict_alone() -> None:
    headers = [(b"content-type", b"application/jsonl; charset=utf-8")]
    assert is_line_stream({"path": "/v1/predict/a", "headers": headers})
    assert not is_line_stream({"path": "/v1/embeddings", "headers": headers})
