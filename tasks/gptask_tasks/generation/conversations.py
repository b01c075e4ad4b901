"""Conversion of published instructions and dialogues into a conversation and its last answer."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence
from typing import Any

from gptask import DataError, Message, listing, parse_messages

TURNS = ("messages", "conversations", "conversation")  # the chat format's, ShareGPT's
INPUTS, OUTPUTS = ("input", "context"), ("output", "response")  # Alpaca's and Dolly's
COMPLETIONS = ("completion", "response")
REFUSED = ("tools", "functions", "images", "image", "videos", "audios")  # change what an answer answers
EMPTY: tuple[Any, ...] = (None, "", "[]", "{}", "null", [], {})
EXPECTED = (
    "expected messages [{role, content}], conversations [{from, value}], instruction (and input) with output, or "
    "prompt with completion; data.columns.messages=<column> names another column"
)


def conversation(row: Any) -> Any:
    """Turn a row in any of the published forms into cells ``messages`` and ``answer``; a text is a user's turn.

    The last message is the answer if it is the assistant's, else there is none; what stands behind the last answer
    that is learned is left out. Raises `DataError` for other rows.
    """
    if isinstance(row, str):
        return {"messages": row, "answer": []}
    if not isinstance(row, dict) or {"messages", "answer"} <= row.keys():
        return row
    if refused := [name for name in REFUSED if row.get(name) not in EMPTY]:
        raise DataError(
            f"the row has {listing(refused)}, which gptask does not put into a prompt: it reads texts alone"
        )
    turns = _turns(row)
    if not turns or turns[-1]["role"] != "assistant":
        return {"messages": turns, "answer": []}
    learned = (n for n, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight") != "0")
    last = max(learned, default=None)
    if last is None:  # each answer has weight 0
        return {"messages": turns[:-1], "answer": []}
    return {"messages": turns[:last], "answer": [turns[last]["content"]]}


def _turns(row: dict[str, Any]) -> list[Message]:
    """Return the whole conversation of a row, by the columns it has."""
    history = _history(row)
    if (name := _first_filled(row, TURNS)) is not None:
        if history:
            raise DataError(f"the row has {name} and a history: put all turns into {name}")
        try:
            turns = parse_messages(row[name])
        except TypeError as error:
            raise DataError(f"the {name} must be a list of messages, got {str(row[name])[:40]!r}") from error
        if turns and turns[0]["role"] == "system":
            return turns
        return [*_message(row, "system", "system"), *turns]
    if "instruction" in row:
        texts = [_text(row, "instruction"), *(_text(row, name) for name in INPUTS if name in row)]
        return _exchange(row, history, "\n\n".join(text for text in texts if text.strip()), "instruction", OUTPUTS)
    if _holds_messages(row.get("prompt")):
        name = _first_filled(row, COMPLETIONS)
        completion = parse_messages(row[name]) if name and _holds_messages(row[name]) else []
        return [*history, *parse_messages(row["prompt"]), *completion]
    if "prompt" in row:
        return _exchange(row, history, _text(row, "prompt"), "prompt", COMPLETIONS)
    raise DataError(f"the columns {listing(row)} hold no conversation: {EXPECTED}")


def _holds_messages(cell: Any) -> bool:
    """Whether a cell is a list of messages, be it written as text, and not the text of a single one."""
    if not isinstance(cell, str):
        return isinstance(cell, list)
    return parse_messages(cell) not in ([], [{"role": "user", "content": cell}])


def _history(row: dict[str, Any]) -> list[Message]:
    """Return the earlier turns of a row, from pairs of question and answer (Alpaca, ChatGLM) or from messages."""
    history = row.get("history")
    if history in EMPTY:
        return []
    if isinstance(history, str):
        try:
            history = literal_eval(history)
        except (ValueError, SyntaxError):
            history = None
    if isinstance(history, list) and all(isinstance(part, dict) for part in history):
        return parse_messages(history)
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise DataError(f"the history must be pairs [[question, answer], ...], got {str(row['history'])[:40]!r}")
    roles = ("user", "assistant")
    return parse_messages(
        [{"role": role, "content": text} for pair in history for role, text in zip(roles, pair, strict=True)]
    )


def _exchange(
    row: dict[str, Any], history: list[Message], question: str, name: str, answer_columns: Sequence[str]
) -> list[Message]:
    """Return a question (from column ``name``) behind a system message and a history, and before its answer."""
    if not question.strip():
        raise DataError(f"the {name} is empty")
    column = _first_filled(row, answer_columns)
    answer = _message(row, column, "assistant") if column else []
    return [*_message(row, "system", "system"), *history, {"role": "user", "content": question}, *answer]


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
