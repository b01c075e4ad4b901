"""JSON that parsers read differently is refused, and every answer can be read."""

import json
import math
from typing import Any

import pytest
from gptask.serving.http.json_text import MAX_DEPTH, InvalidJson, json_bytes, parse_json


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b'{"a": 1,}', "line 1 column 9"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": "\xff"}', "byte 0xff at position 7"),
        (b'{"a": 1, "b": {"a": 1, "c": 2, "a": 3}}', "the name 'a' twice"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 5000 + b"]", "more than 64 bits"),
        (b"[9223372036854775808]", "more than 64 bits"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deep"),
        (b"[" * 100_000, "deep"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "deep"),
        (b'[{"text": ["a", "\\uD83D"]}]', "examples[0].text[1] holds half a surrogate pair"),
        (b'{"\\ude00": 1}', "half a surrogate pair"),
    ],
)
def test_ambiguous_json_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidJson) as caught:
        parse_json(raw)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        1, -(2**63), 2**63 - 1, 0.5, "a", None, True, [], {}, "\U0001f600", {"a": {"a": [{"a": 1}]}},
        json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH), [[]] * 500,
    ],
)  # fmt: skip
def test_other_json_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value).encode("utf-8-sig")) == value


def test_every_value_becomes_json() -> None:
    text = json_bytes({"a": [math.nan, math.inf, 1.5], "b": "\ud800", "c": (1, "\udfff"), 3: {4}}).decode()
    values = json.loads(text)
    assert values["a"] == [None, None, 1.5]
    assert (values["b"], values["c"][0], values["3"]) == ("\\ud800", 1, "{4}")
