"""How an option is declared that explains itself in `gptask <verb> --help`."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import Any


def option(default: Any, help: str) -> Any:
    """Declare an option by its default (a class or function makes a new one each time) and its help line."""
    if callable(default) and not isinstance(default, Enum):
        return field(default_factory=default, metadata={"help": help})
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})
