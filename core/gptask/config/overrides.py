"""Rewriting of overrides as users type them into what Hydra's grammar accepts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from gptask.errors import UserError

ASSIGNMENT = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[^\W\d][\w./@-]*)=(?P<value>.*)", re.DOTALL)
DELETION = re.compile(r"~[^\W\d][\w./@-]*")
MAX_DEPTH = 50  # of brackets, beyond which a value is a text: Hydra's grammar is read by recursion
BRACKETS = {"[": "]", "{": "}", "(": ")"}


def normalize_overrides(
    overrides: Iterable[str], multirun: bool, known: Collection[str], open_keys: Collection[str]
) -> list[str]:
    """Quote values that the grammar refuses, and correct the signs.

    ``known`` are the names at the top of a verb's config: a ``+`` before such a name is superfluous and would keep the
    schema from refusing what follows. ``open_keys`` are dictionaries without fixed keys, where Hydra wants a ``++``.
    Raises `UserError` for a text that is not an override.
    """
    return [_normalize(override, multirun, known, open_keys) for override in overrides]


def _normalize(override: str, multirun: bool, known: Collection[str], open_keys: Collection[str]) -> str:
    assignment = ASSIGNMENT.fullmatch(override)
    if not assignment:
        if DELETION.fullmatch(override):
            return override
        raise UserError(f"{override!r} is not an override: write <option>=<value>, such as seed=7 or task=qa")
    sign, key, value = assignment["sign"], assignment["key"], assignment["value"]
    if not key.isascii():
        raise UserError(f"{key}: option names on the command line must be ASCII; put this option into a YAML preset")
    if "+" in sign and re.split(r"[./@]", key)[0] in known:
        sign = ""
    task_key = re.sub(r"^tasks\.\w+\.(?=\w+\.)", "", key)  # tasks.<name>.task.labels is the task's own task.labels
    adds_key = any(task_key.startswith(f"{name}.") for name in open_keys)
    if not sign and (adds_key or (task_key in open_keys and value.lstrip().startswith("{"))):
        sign = "++"
    return f"{sign}{key}={quote_if_needed(value, multirun)}"


def quote_if_needed(value: str, multirun: bool = False) -> str:
    """Return a value that the grammar reads as meant unchanged, else quote it, or only the parts of it that need it.

    The parts are the elements of a list or dictionary, or the choices of a sweep.
    """
    if _depth(value) > MAX_DEPTH:
        return quoted(value)
    if _parses_as_meant(value, multirun):
        return value
    if (collection := _quote_elements(value)) is not None and _parses_as_meant(collection, multirun):
        return collection
    if multirun and len(choices := list(_split_at_commas(value))) > 1 and all(choices):
        return ",".join(quote_if_needed(choice.strip()) for choice in choices)
    return quoted(value)


def _parses_as_meant(value: str, multirun: bool) -> bool:
    from hydra.errors import HydraException

    if re.fullmatch(r"\d+(_\d+)+", value):  # as in Python, 2_024 would be a number, but it is meant as a name
        return False
    try:
        override = parse_override(f"key={value}")
    except HydraException:
        return False
    return multirun or not override.is_sweep_override()


def _depth(value: str) -> int:
    """How deep brackets are open in a value, whatever stands between them."""
    depth = deepest = 0
    for character in value if value.count("[") + value.count("{") > MAX_DEPTH else "":
        depth += (character in "[{") - (character in "]}")
        deepest = max(depth, deepest)
    return deepest


def _quote_elements(value: str) -> str | None:
    """Quote the elements of ``[a, b]`` or ``{a: b}`` where needed; None for other texts, such as prompts."""
    text = value.strip()
    if text[:1] not in ("[", "{") or text[-1:] != BRACKETS[text[0]]:
        return None
    elements = list(_split_at_commas(text[1:-1]))
    if not all(elements):
        return None
    if text[0] == "[":
        return f"[{','.join(quote_if_needed(element.strip()) for element in elements)}]"
    pairs = [element.partition(":") for element in elements]
    return f"{{{','.join(f'{key}:{quote_if_needed(item.strip())}' for key, _, item in pairs)}}}"


def _split_at_commas(text: str) -> Iterator[str]:
    """Cut at commas outside brackets and quotes; an empty part marks brackets or quotes that don't match."""
    open_brackets: list[str] = []  # the closing bracket of each that is open
    quote, start = "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[position - 1] != "\\" else quote
        elif character in "'\"" and not text[start:position].strip(" [{:("):
            quote = character
        elif character in BRACKETS:
            open_brackets.append(BRACKETS[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        elif character in BRACKETS.values():
            yield ""
        elif character == "," and not open_brackets:
            yield text[start:position]
            start = position + 1
    yield "" if open_brackets or quote else text[start:]


def quoted(value: str) -> str:
    """Put a value in single quotes for Hydra's grammar, in which backslashes count only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda backslashes: backslashes[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda backslashes: backslashes[1] * 2, escaped)
    return f"'{escaped}'"


def parse_override(override: str) -> Any:
    """Parse an override with Hydra's own grammar; raises ``HydraException``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # a number of 5,000 digits, say
        raise HydraException(f"Error parsing override {override[:80]}: {error}") from error


def values_of(overrides: Iterable[str], key: str) -> list[Any]:
    """Return the values that normalized overrides give a key such as ``run``: none, one, or those of a sweep.

    The last override of a key wins, as in Hydra.
    """
    matching = [override for override in overrides if override.partition("=")[0].lstrip("+") == key]
    if not matching:
        return []
    override = parse_override(matching[-1])
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
