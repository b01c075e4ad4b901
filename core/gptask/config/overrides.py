"""Overrides as users type them, made into what Hydra's grammar accepts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from gptask.errors import UserError

ASSIGNMENT = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[^\W\d][\w./@-]*)=(?P<value>.*)", re.DOTALL)
DELETION = re.compile(r"~[^\W\d][\w./@-]*")
BRACKETS = {"[": "]", "{": "}", "(": ")"}


def normalize_overrides(
    overrides: Iterable[str], multirun: bool, known: Collection[str], open_keys: Collection[str]
) -> list[str]:
    """Quote values that the grammar refuses, and put the signs right.

    ``known`` are the names at the top of a verb's config: a ``+`` before one is superfluous, and would keep the
    schema from refusing what follows. ``open_keys`` are dictionaries without fixed keys: Hydra wants a ``++`` there.
    """
    return [_normalize(override, multirun, known, open_keys) for override in overrides]


def _normalize(override: str, multirun: bool, known: Collection[str], open_keys: Collection[str]) -> str:
    found = ASSIGNMENT.fullmatch(override)
    if not found:
        if DELETION.fullmatch(override):
            return override
        raise UserError(f"{override!r} is no override: write <option>=<value>, such as seed=7 or task=qa")
    sign, key, value = found["sign"], found["key"], found["value"]
    if not key.isascii():
        raise UserError(f"{key}: option names on the command line are plain letters; put this one into a YAML preset")
    if "+" in sign and re.split(r"[./@]", key)[0] in known:
        sign = ""
    inner = re.sub(r"^tasks\.\w+\.(?=\w+\.)", "", key)
    inside = any(inner.startswith(f"{name}.") for name in open_keys)
    if not sign and (inside or (inner in open_keys and value.lstrip().startswith("{"))):
        sign = "++"
    return f"{sign}{key}={quote_if_needed(value, multirun)}"


def quote_if_needed(value: str, multirun: bool = False) -> str:
    """The value if the grammar reads it as meant, else quoted: whole, or the parts of a list, dictionary or sweep."""
    if _fits(value, multirun):
        return value
    if (parts := _inside(value)) is not None and _fits(parts, multirun):
        return parts
    if multirun and len(choices := list(_split(value))) > 1:
        return ",".join(quote_if_needed(choice.strip()) for choice in choices)
    return quoted(value)


def _fits(value: str, multirun: bool) -> bool:
    from hydra.errors import HydraException

    if re.fullmatch(r"\d+(_\d+)+", value):  # Python's 2_024 is a name here
        return False
    try:
        override = parse_override(f"key={value}")
    except HydraException:
        return False
    return multirun or not override.is_sweep_override()


def _inside(value: str) -> str | None:
    """``[a, b]`` and ``{a: b}`` with their elements quoted where needed; None for other texts, prompts for instance."""
    text = value.strip()
    if text[:1] not in ("[", "{") or text[-1:] != BRACKETS[text[0]]:
        return None
    elements = list(_split(text[1:-1]))
    if not all(elements):
        return None
    if text[0] == "[":
        return f"[{','.join(quote_if_needed(element.strip()) for element in elements)}]"
    pairs = [element.partition(":") for element in elements]
    return f"{{{','.join(f'{key}:{quote_if_needed(item.strip())}' for key, _, item in pairs)}}}"


def _split(text: str) -> Iterator[str]:
    """Cut at commas outside brackets and quotes; an empty part marks brackets that don't match."""
    expected: list[str] = []
    quote, start = "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[place - 1] != "\\" else quote
        elif character in "'\"" and not text[start:place].strip(" [{:("):
            quote = character
        elif character in BRACKETS:
            expected.append(BRACKETS[character])
        elif expected and character == expected[-1]:
            expected.pop()
        elif character in BRACKETS.values():
            yield ""
        elif character == "," and not expected:
            yield text[start:place]
            start = place + 1
    yield "" if expected or quote else text[start:]


def quoted(value: str) -> str:
    """A value in single quotes, as Hydra's grammar reads them (backslashes count only before a quote)."""
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda m: m[1] * 2, escaped)
    return f"'{escaped}'"


def parse_override(override: str) -> Any:
    """Hydra's own reading of an override; raises ``HydraException``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def values_of(overrides: Iterable[str], key: str) -> list[Any]:
    """The values that normalized overrides give a key such as ``run`` or ``task``: none, one, or those of a sweep."""
    found = [override for override in overrides if override.partition("=")[0].lstrip("+") == key]
    if not found:
        return []
    override = parse_override(found[-1])
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
