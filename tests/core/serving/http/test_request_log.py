"""The id, the log line, the metrics and the headers of every answer."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.core.serving.conftest import RunningServer


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], str]:
    caplog.set_level(logging.DEBUG, "gptask")

    def line_of(request_id: str) -> str:
        (line,) = (m for m in caplog.messages if m.startswith(f"request {request_id}: "))
        return line

    return line_of


def test_a_sane_id_is_kept_and_another_is_replaced(server: RunningServer) -> None:
    for name in ("a-1.b:c_d", "x" * 64):
        assert server.http.get("/health", headers={"X-Request-Id": name}).headers["X-Request-Id"] == name
    for name in ("", "x" * 65, "a b", "a\tb", '"><script>', "ü"):
        headers = {"X-Request-Id": name.encode()}
        assert server.http.get("/health", headers=headers).headers["X-Request-Id"].isalnum()


def test_a_request_has_one_line_without_its_text(server: RunningServer, logged: Callable[[str], str]) -> None:
    server.predict("sentiment", ["very secret", "bad"], headers={"X-Request-Id": "r1"})
    line = logged("r1")
    assert "POST /v1/predict/sentiment run=sentiment status=200 ms=" in line
    assert int(line.partition("tokens_in=")[2].split()[0]) > 10
    assert "secret" not in line
    server.predict("french", "good", headers={"X-Request-Id": "r2"})
    assert int(logged("r2").partition("tokens_out=")[2]) > 0
    server.http.get("/v1/%0Arequest%20r3:%20x", headers={"X-Request-Id": "r3"})
    assert "\n" not in logged("r3")
    assert "run=- status=404" in logged("r3")


def test_texts_are_logged_where_that_is_asked_for(
    with_options: Callable[..., Any], logged: Callable[[str], str]
) -> None:
    with with_options(log_texts=True) as server:
        server.predict("sentiment", "very secret " * 100, headers={"X-Request-Id": "r4"})
    assert 'body="very secret very' in logged("r4")
    assert len(logged("r4")) < 400


def test_answers_are_counted(server: RunningServer) -> None:
    def count() -> float:
        lines = server.http.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("gptask_requests_total{") and 'run="topics"' in line]
        return sum(float(line.split()[-1]) for line in found)

    before = count()
    server.predict("topics", "good")
    server.predict("topics", "")
    server.predict("no such run", "good")
    assert count() == before + 2


def test_every_answer_has_the_headers(server: RunningServer) -> None:
    answers = [
        server.http.get("/health"),
        server.http.get("/nothing"),
        server.predict("sentiment", "good"),
        server.predict("sentiment", ""),
        server.http.post("/v1/predict/sentiment", content=b"{", headers={"Content-Type": "application/json"}),
        server.http.post("/v1/predict/lm", content=b'"a"', headers={"Content-Type": "application/jsonl"}),
        server.http.get("/v1/models", headers={"Host": "evil.com"}),
    ]
    for answer in answers:
        headers = answer.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Request-Id"]
        assert "server" not in headers


def test_head_and_options(server: RunningServer) -> None:
    head = server.http.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(server.http.get("/v1/models").content)
    assert server.http.head("/nothing").status_code == 404
    options = server.http.options("/v1/predict/sentiment")
    assert (options.status_code, options.headers["Allow"]) == (204, "POST")
    assert server.http.options("/nothing").status_code == 404
