"""The turns of a conversation as files have them, made into one form."""

from __future__ import annotations

from typing import Any

from gptask.errors import DataError, listing

Message = dict[str, str]  # role and content
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
KEYS = (("role", "content"), ("from", "value"))  # of the chat format, of ShareGPT


def parse_messages(cell: Any) -> list[Message]:
    """Turns in the chat format (``role``, ``content``) or ShareGPT's (``from``, ``value``); a text is a user's turn.

    Raises `DataError` that names the turn: its shape, a role that is no turn's, an empty text, a system message that
    does not stand first.
    """
    if isinstance(cell, str):
        return [{"role": "user", "content": cell}] if cell.strip() else []
    if not isinstance(cell, list):
        raise TypeError
    found = [_message(turn, number) for number, turn in enumerate(cell, 1)]
    for number, message in enumerate(found[1:], 2):
        if message["role"] == "system":
            raise DataError(f"message {number} is the system's, which can only stand first")
    return [message for message in found if message["content"].strip()]  # a system message may be empty


def told(value: Any) -> str | None:
    """Turns as lines for a reader; None for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return None
    if not all(turn.keys() == {"role", "content"} for turn in value):
        return None
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)


def _message(turn: Any, number: int) -> Message:
    given = turn if isinstance(turn, dict) else {}
    keys = next((pair for pair in KEYS if all(key in given for key in pair)), None)
    if keys is None:
        got = f"the keys {listing(given)}" if given else repr(turn)[:40]
        raise DataError(f"message {number} has {got}; expected role and content (or from and value, as ShareGPT has)")
    role, content = given[keys[0]], _content(given[keys[1]], number)
    if (known := ROLES.get(str(role).lower())) is None:
        raise DataError(f"message {number} has the role {str(role)[:40]!r}; expected {listing(ROLES)}")
    if known != "system" and not content.strip():
        raise DataError(f"message {number} ({role}) is empty")
    return {"role": known, "content": content}


def _content(value: Any, number: int) -> str:
    """A text, or the texts of a list of parts, as the chat format may have them."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise DataError(f"message {number} holds {str(value)[:40]!r} instead of a text")
    value.encode()  # half a surrogate pair is no character
    return value
