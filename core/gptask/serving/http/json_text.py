"""JSON in and out: bodies that mean one thing only, and answers that every parser reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response

from gptask.runs.prediction_lines import as_json, encodable

BYTE_ORDER_MARK = "\ufeff"
MAX_DEPTH = 100  # of lists and objects in each other
MAX_INTEGER = 2**63


class InvalidJson(Exception):
    """A body is no JSON, or JSON that parsers read differently; ``param`` is the place in it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def parse_json(raw: bytes, name: str = "the body") -> Any:
    """The value of JSON in UTF-8; a byte order mark before it, which editors on Windows write, is skipped.

    Raises `InvalidJson` for anything else, and for what parsers don't agree on: names that stand twice in an object,
    NaN and infinities, whole numbers of more than 64 bits, half a surrogate pair, and deep nesting.
    """
    try:
        text = raw.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise InvalidJson(f"{name} is not UTF-8: {byte}") from error
    if not text.strip():
        raise InvalidJson(f"{name} is empty; expected JSON")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_number,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{name} is no JSON: {error}") from error
    except RecursionError as error:
        raise InvalidJson(f"{name} has lists and objects in each other more than {MAX_DEPTH} deep") from error
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise InvalidJson(f"{name} has lists and objects in each other more than {MAX_DEPTH} deep")
    root = "examples" if isinstance(value, list) else ""
    if b"\\ud" in raw.lower() and (place := next(_broken_texts(value, root), None)) is not None:
        raise InvalidJson(f"{place or name} holds half a surrogate pair, which is not a character", place or None)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidJson(f"an object has the name {twice[:40]!r} twice", twice[:40])
    return members


def _constant(name: str) -> None:
    raise InvalidJson(f"{name} is no number of JSON")


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise InvalidJson(f"the number {text[:20]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -MAX_INTEGER <= (value := int(text)) < MAX_INTEGER:
        raise InvalidJson(f"the whole number {text[:20]} has more than 64 bits")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        parents = (node for node in level if isinstance(node, list | dict))
        level = [child for node in parents for child in (node.values() if isinstance(node, dict) else node)]
    return any(isinstance(node, list | dict) for node in level)


def _broken_texts(value: Any, place: str) -> Iterator[str]:
    """The places of texts that can't be encoded."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield place
    elif isinstance(value, list):
        for number, member in enumerate(value):
            yield from _broken_texts(member, f"{place}[{number}]")
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from _broken_texts(name, place)
            yield from _broken_texts(member, f"{place}.{encodable(name)}".lstrip("."))


def json_bytes(value: Any) -> bytes:
    """A value as JSON: null for numbers that are not finite, texts for what JSON does not know."""
    return as_json(encodable(value)).encode("utf-8", "backslashreplace")


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer."""
    return Response(json_bytes(value), status, headers, media_type="application/json")
