"""Instructions and dialogues as they are published, made into a conversation and its last answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptask import DataError, Message, listing, parse_messages

TURNS = ("messages", "conversations", "conversation")  # chat format; ShareGPT
INPUTS, OUTPUTS = ("input", "context"), ("output", "response")  # Alpaca; Dolly
COMPLETIONS = ("completion", "response")
EXPECTED = (
    "expected messages [{role, content}], conversations [{from, value}], instruction (and input) with output, or "
    "prompt with completion; data.columns.messages=<column> names another one"
)


def conversation(row: Any) -> Any:
    """Cells ``messages`` and ``answer`` from a row in any of the published forms; a text is what a user says.

    The last message is the answer if it is the assistant's, else there is none. Raises `DataError` for other rows.
    """
    if isinstance(row, str):
        return {"messages": row, "answer": []}
    if not isinstance(row, dict) or {"messages", "answer"} <= row.keys():
        return row
    turns = _turns(row)
    if turns and turns[-1]["role"] == "assistant":
        return {"messages": turns[:-1], "answer": [turns[-1]["content"]]}
    return {"messages": turns, "answer": []}


def _turns(row: dict[str, Any]) -> list[Message]:
    if (name := _first(row, TURNS)) is not None:
        try:
            turns = parse_messages(row[name])
        except TypeError as error:
            raise DataError(f"the {name} must be a list of messages, got {str(row[name])[:40]!r}") from error
        if turns and turns[0]["role"] == "system":
            return turns
        return [*_said(row, "system", "system"), *turns]
    if "instruction" in row:
        parts = [_text(row, "instruction"), *(_text(row, name) for name in INPUTS if name in row)]
        return _exchange(row, "\n\n".join(part for part in parts if part.strip()), "instruction", OUTPUTS)
    if isinstance(row.get("prompt"), list):
        name = _first(row, COMPLETIONS)
        return parse_messages(row["prompt"] + (row[name] if name and isinstance(row[name], list) else []))
    if "prompt" in row:
        return _exchange(row, _text(row, "prompt"), "prompt", COMPLETIONS)
    raise DataError(f"the columns {listing(row)} hold no conversation: {EXPECTED}")


def _exchange(row: dict[str, Any], asked: str, name: str, answers: Sequence[str]) -> list[Message]:
    """What is asked, and its answer where there is one."""
    if not asked.strip():
        raise DataError(f"the {name} is empty")
    answer = _first(row, answers)
    said = _said(row, answer, "assistant") if answer else []
    return [*_said(row, "system", "system"), {"role": "user", "content": asked}, *said]


def _said(row: dict[str, Any], name: str, role: str) -> list[Message]:
    text = _text(row, name)
    return [{"role": role, "content": text}] if text.strip() else []


def _first(row: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str | None):
        raise DataError(f"the {name} must be a text, got {str(value)[:40]!r}")
    return value or ""
