"""Overrides as users type them, made into what Hydra's grammar accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable

OPEN = ("trainer.", "data.columns.", "data.labels.", "task.label_words.")  # dictionaries without fixed keys
ASSIGNMENT = re.compile(r"(?P<key>~?[+]{0,2}[A-Za-z_][\w./@-]*)=(?P<value>.*)", re.DOTALL)


def normalize(arguments: Iterable[str], multirun: bool) -> list[str]:
    """Quote values that the grammar refuses and add ``++`` to keys of open dictionaries; flags pass unchanged."""
    return [_normalize(argument, multirun) for argument in arguments]


def _normalize(argument: str, multirun: bool) -> str:
    found = ASSIGNMENT.fullmatch(argument)
    if argument.startswith("-") or not found:
        return argument
    key, value = found["key"], found["value"]
    if key.startswith(OPEN):
        key = f"++{key}"
    return f"{key}={value}" if _accepted(key, value, multirun) else f"{key}={quoted(value)}"


def _accepted(key: str, value: str, multirun: bool) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return False
    return multirun or not override.is_sweep_override()


def quoted(value: str) -> str:
    """A value in single quotes, as Hydra's grammar reads them (backslashes count only before a quote)."""
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda m: m[1] * 2, escaped)
    return f"'{escaped}'"


def chosen(arguments: Iterable[str], key: str) -> str | None:
    """The value given last for a plain key such as ``run`` or ``task``, unquoted."""
    value = None
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if equals and name.lstrip("+") == key:
            value = text
    return value
