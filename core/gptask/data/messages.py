"""The messages of a conversation, from the forms that files have them in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptask.data.literals import parse_container
from gptask.errors import DataError, listing

Message = dict[str, str]  # role and content; an answer that is not learned has the weight "0" too
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
ROLE_AND_CONTENT_KEYS = (("role", "content"), ("from", "value"))  # of the chat format, of ShareGPT
WEIGHT_KEYS = ("weight", "train", "loss")  # whether an answer is learned: by OpenAI and Mistral, Axolotl, ms-swift
WEIGHTS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
REFUSED_KEYS = (  # what a message says besides its text, and what gptask does not put into a prompt
    "tool_calls", "function_call", "tool_call_id", "refusal", "reasoning_content", "thinking", "train_detail",
    "audio", "image", "images", "video", "videos",
)  # fmt: skip


def parse_messages(cell: Any) -> list[Message]:
    """Messages in the chat format (``role``, ``content``) or ShareGPT's (``from``, ``value``); a text is a user's.

    A text that is the written form of such a list (JSON, Python's or numpy's) is that list; other JSON is a prompt.
    An answer of weight 0 (``train: false``) keeps the weight "0". Raises `DataError` that names the message: its keys
    are others, its role is unknown, its text is empty, it has more than a text (such as calls of tools), or it is a
    system message that is not the first.
    """
    if isinstance(cell, str):
        content = parse_container(cell)
        cell = content if content == [] or _are_messages(content) else cell
    if isinstance(cell, str):
        return [{"role": "user", "content": cell}] if cell.strip() else []
    if not isinstance(cell, list):
        raise TypeError
    messages = [_parse_message(raw, number) for number, raw in enumerate(cell, 1)]
    for number, message in enumerate(messages[1:], 2):
        if message["role"] == "system":
            raise DataError(f"message {number} is a system message, which must come first")
    return [message for message in messages if message["content"].strip()]  # a system message may be empty


def _are_messages(content: Any) -> bool:
    """Whether a list holds objects of which the first says who speaks."""
    is_list = isinstance(content, list) and all(isinstance(message, dict) for message in content)
    return is_list and any(keys[0] in content[0] for keys in ROLE_AND_CONTENT_KEYS)


def format_message(value: Any) -> str | None:
    """Messages as lines ``role: content`` for a reader; None for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        return None
    if not all(message.keys() - {"weight"} == {"role", "content"} for message in value):
        return None
    return "\n".join(f"{message['role']}: {message['content']}" for message in value)


def is_learned(message: Message) -> bool:
    """Whether a message is an answer that is learned: the assistant's, unless its weight is 0."""
    return message["role"] == "assistant" and message.get("weight") != "0"


def unused_members(cell: Any) -> Iterator[str]:
    """The names of members of messages, anywhere in a cell, that hold something and have no effect."""
    if isinstance(cell, list):
        for part in cell:
            yield from unused_members(part)
    if not isinstance(cell, dict):
        return
    if (keys := _role_and_content_keys(cell)) is None:
        yield from unused_members(list(cell.values()))
        return
    is_answer = ROLES.get(str(cell[keys[0]]).lower()) == "assistant"
    for name, value in cell.items():
        no_effect = name not in WEIGHT_KEYS if is_answer else name not in WEIGHT_KEYS or _weight(name, value, 0)
        if name not in keys and not _is_empty(value) and no_effect:
            yield str(name)


def _role_and_content_keys(members: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in ROLE_AND_CONTENT_KEYS if all(key in members for key in pair)), None)


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _weight(name: str, value: Any, number: int) -> bool:
    """Whether a weight says that a message is learned."""
    if (weight := WEIGHTS.get(str(value).lower())) is None:
        raise DataError(f"message {number} has {name}={str(value)[:40]}; expected 0 or false (not learned), 1 or true")
    return weight


def _parse_message(raw: Any, number: int) -> Message:
    members = raw if isinstance(raw, dict) else {}
    keys = _role_and_content_keys(members)
    if keys is None:
        got = f"the keys {listing(members)}" if members else repr(raw)[:40]
        raise DataError(f"message {number} has {got}; expected role and content (or from and value, as ShareGPT has)")
    raw_role, content = members[keys[0]], _parse_content(members[keys[1]], number)
    role = ROLES.get(str(raw_role).lower())
    if role is None:
        raise DataError(f"message {number} has the role {str(raw_role)[:40]!r}; expected {listing(ROLES)}")
    if role != "system" and not content.strip():
        raise DataError(f"message {number} ({raw_role}) is empty")
    if refused := [name for name in REFUSED_KEYS if not _is_empty(members.get(name))]:
        raise DataError(f"message {number} has {listing(refused)}, which a prompt of gptask can't show: it shows texts")
    weights = [_weight(name, members[name], number) for name in WEIGHT_KEYS if not _is_empty(members.get(name))]
    unlearned = {"weight": "0"} if role == "assistant" and not all(weights) else {}
    return {"role": role, "content": content} | unlearned


def _parse_content(content: Any, number: int) -> str:
    """A text, or the joined texts of a list of parts, which the chat format allows too."""
    if (
        isinstance(content, list)
        and content
        and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"message {number} holds {str(content)[:40]!r} instead of a text")
    content.encode()  # raises UnicodeEncodeError for half a surrogate pair
    return content
