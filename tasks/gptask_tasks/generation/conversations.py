"""Conversion of published instructions and dialogues into a conversation and its last answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptask import DataError, Message, listing, parse_messages

TURNS = ("messages", "conversations", "conversation")  # the chat format's, ShareGPT's
INPUTS, OUTPUTS = ("input", "context"), ("output", "response")  # Alpaca's and Dolly's
COMPLETIONS = ("completion", "response")
EXPECTED = (
    "expected messages [{role, content}], conversations [{from, value}], instruction (and input) with output, or "
    "prompt with completion; data.columns.messages=<column> names another column"
)


def conversation(row: Any) -> Any:
    """Turn a row in any of the published forms into cells ``messages`` and ``answer``; a text is a user's turn.

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
    """Return the whole conversation of a row, by the columns it has."""
    if (name := _first_filled(row, TURNS)) is not None:
        try:
            turns = parse_messages(row[name])
        except TypeError as error:
            raise DataError(f"the {name} must be a list of messages, got {str(row[name])[:40]!r}") from error
        if turns and turns[0]["role"] == "system":
            return turns
        return [*_message(row, "system", "system"), *turns]
    if "instruction" in row:
        texts = [_text(row, "instruction"), *(_text(row, name) for name in INPUTS if name in row)]
        return _exchange(row, "\n\n".join(text for text in texts if text.strip()), "instruction", OUTPUTS)
    if _holds_messages(row.get("prompt")):
        name = _first_filled(row, COMPLETIONS)
        completion = parse_messages(row[name]) if name and _holds_messages(row[name]) else []
        return [*parse_messages(row["prompt"]), *completion]
    if "prompt" in row:
        return _exchange(row, _text(row, "prompt"), "prompt", COMPLETIONS)
    raise DataError(f"the columns {listing(row)} hold no conversation: {EXPECTED}")


def _holds_messages(cell: Any) -> bool:
    """Whether a cell is a list of messages, be it written as text, and not the text of a single one."""
    if not isinstance(cell, str):
        return isinstance(cell, list)
    return parse_messages(cell) not in ([], [{"role": "user", "content": cell}])


def _exchange(row: dict[str, Any], question: str, name: str, answer_columns: Sequence[str]) -> list[Message]:
    """Return a question (from column ``name``), behind a system message and before its answer if there are any."""
    if not question.strip():
        raise DataError(f"the {name} is empty")
    column = _first_filled(row, answer_columns)
    answer = _message(row, column, "assistant") if column else []
    return [*_message(row, "system", "system"), {"role": "user", "content": question}, *answer]


def _message(row: dict[str, Any], name: str, role: str) -> list[Message]:
    """Return the message of a column, none if it is blank."""
    text = _text(row, name)
    return [{"role": role, "content": text}] if text.strip() else []


def _first_filled(row: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str | None):
        raise DataError(f"the {name} must be a text, got {str(value)[:40]!r}")
    return value or ""
