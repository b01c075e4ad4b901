"""Bad requests in numbers: none is a 500, none hangs, none is told a trace, and the server answers right afterwards."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.core.serving.conftest import EXAMPLES, RunningServer

PATHS = ["/v1/embeddings", "/classify", "/pooling", *(f"/v1/predict/{name}" for name in EXAMPLES)]
OTHER_PATHS = ["/", "//", "/v1/predict/", "/v1/predict/%00", "/v1/predict/..%2f..", "/v1/models/%ff", "/metrics",
               "/ready", "/openapi.json", "/v1/predict/topics?a=%ff", "/" + "a" * 5000]  # fmt: skip
METHODS = ["GET", "POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "BREW"]
TYPES = ["application/json"] * 12 + ["application/x-ndjson"] * 3 + [
    "text/plain", "", "application/json;charset=utf-16", "multipart/form-data; boundary=", "a/b/c", "\xff",
    "application/json; charset*=x''%ff",
]  # fmt: skip
TEXTS = [
    "", " ", "good", "\0", "\u200b", "\ufeff", "é" * 40, "这部电影很好", "<|endoftext|>", "{text}", "a" * 3000, "\n\n",
    "-1", "[1, 2]", '{"a": [1]}', "[{'role': 'user', 'content': 'a'}]", "/etc/passwd",
]  # fmt: skip
NUMBERS = [0, -1, 1, 5, 2**31, 2**63 - 1, -(2**63), 0.5, -0.0, 1e300, 1e-320]
NAMES = [
    "text", "context", "question", "document", "source", "messages", "tokens", "predicate", "answers", "answer_start",
    "id", "model", "input", "instruction", "prompt", "history", "system", "role", "content", "label", "answer",
    "output", "conversations", "pooling", "encoding_format", "", "a.b", "__class__",
]  # fmt: skip
TRACES = re.compile(rb'Traceback|File "|\.py\b|gptask_tasks|site-packages')


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """JSON that is anything."""
    kind = draw.random()
    if kind < 0.3:
        return draw.choice(TEXTS)
    if kind < 0.5:
        return draw.choice([*NUMBERS, None, True, False])
    if kind < 0.7 and depth < 4:
        return [odd_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if depth < 4:
        return {draw.choice(NAMES): odd_value(draw, depth + 1) for _ in range(draw.randrange(4))}
    return None


def odd_body(draw: random.Random, path: str) -> Any:
    """A good body of a path of which some part is something else."""
    name = path.rpartition("/")[2]
    body: Any = json.loads(json.dumps(draw.choice(EXAMPLES.get(name, [{"model": "topics", "input": "good"}]))))
    for _ in range(draw.randrange(3)):
        if isinstance(body, dict) and draw.random() < 0.8:
            body[draw.choice([*body, draw.choice(NAMES)])] = odd_value(draw)
        elif draw.random() < 0.5:
            body = odd_value(draw)
        else:
            body = [body, odd_value(draw)]
    return body


def broken(draw: random.Random, data: bytes) -> bytes:
    """The same bytes with some replaced, left out or added."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        place = draw.randrange(len(changed) + 1)
        changed[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
    return bytes(changed)


def request_of(draw: random.Random) -> tuple[str, bytes, bool]:
    """The kind of a bad request, its bytes, and whether the server must answer it."""
    kind = draw.choice(
        ["wrong types", "wrong types", "wrong types", "broken body", "broken head", "bytes", "half", "odd"]
    )
    path, method, media_type = draw.choice(PATHS), "POST", draw.choice(TYPES[:15])
    if kind == "odd":
        path, method, media_type = draw.choice([*OTHER_PATHS, path]), draw.choice(METHODS), draw.choice(TYPES)
    body = json.dumps(odd_body(draw, path), ensure_ascii=draw.random() < 0.5).encode()
    if kind == "broken body":
        body = broken(draw, body)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {media_type}\r\n"
    raw = head.encode("latin-1")
    if draw.random() < 0.2:
        raw += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        raw += b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    if kind == "broken head":
        return kind, broken(draw, raw[:60]) + raw[60:], False
    if kind == "half":
        return kind, raw[: draw.randrange(len(raw))], False
    if kind == "bytes":
        return kind, draw.randbytes(draw.randrange(1, 300)) + b"\r\n\r\n", False
    return kind, raw, True


def send_bad_requests(server: RunningServer, count: int, seed: int) -> Counter[str]:
    """Send requests; a client of those that need no answer goes away at once. Counts the kinds and the answers."""
    draw, counts = random.Random(seed), Counter[str]()
    for number in range(count):
        kind, raw, must_answer = request_of(draw)
        counts[kind] += 1
        if must_answer:
            answer = server.raw(raw)
            status = answer[9:12].decode()
            assert answer.startswith(b"HTTP/1.1 "), (raw, answer)
            assert status != "500", (raw, answer)
            assert not TRACES.search(answer.partition(b"\r\n\r\n")[2]), (raw, answer)
            counts[status] += 1
        else:
            with server.connect() as connection:
                connection.sendall(raw)
        if number % 100 == 99:
            assert server.http.get("/health").status_code == 200
    return counts


def test_bad_requests(
    server: RunningServer, with_options: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = {name: server.predict(name, EXAMPLES[name]).json() for name in ("sentiment", "qa", "tags")}
    with with_options(timeout_s=0.3) as slow:  # bodies that never end, beside the others
        connections = [slow.connect() for _ in range(20)]
        for connection in connections:
            connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               b"Content-Length: 30\r\n\r\n{")  # fmt: skip
        counts = send_bad_requests(server, 480, seed=1)
        for connection in connections:
            with connection:
                assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
    for name, answers in expected.items():
        assert server.predict(name, EXAMPLES[name]).json() == answers
    assert counts["200"] > 20  # some are right after all
    assert min(counts["400"], counts["422"]) > 50
    assert not [r for r in caplog.records if "internal error" in r.getMessage()]


@pytest.mark.long
def test_many_bad_requests(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    expected = server.predict("qa", EXAMPLES["qa"]).json()
    counts = send_bad_requests(server, 17_000, seed=2)
    assert server.predict("qa", EXAMPLES["qa"]).json() == expected
    with capsys.disabled():
        print("\nbad requests, by kind and status:", dict(counts.most_common()))


@pytest.mark.long
def test_requests_that_schemathesis_makes_of_the_openapi_description(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    import hypothesis
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    # not whether it takes all that fits: a schema can't say that a text is too long or a predicate outside its words
    wanted = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    wanted.append(checks.response_schema_conformance)

    def send(case: Any, mode: str) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{server.port}")
        counts[f"{mode} {response.status_code}"] += 1
        case.validate_response(response, checks=wanted)

    counts = Counter[str]()
    schema = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in operations:
        # of a path without a body, everything is right
        for mode in [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if len(operation.body) else [])]:
            settings = hypothesis.settings(
                max_examples=max(1, 4000 // (2 * len(operations))),
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            strategy = operation.as_strategy(generation_mode=mode)
            hypothesis.seed(3)(settings(hypothesis.given(strategy, hypothesis.strategies.just(mode.value))(send)))()
    assert counts.total() > 2000
    with capsys.disabled():
        print("\nrequests of schemathesis, by mode and status:", dict(counts.most_common()))
