"""Markdown from values that may hold anything: file names, options, a user's texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def line(value: object) -> str:
    """A value as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def code(value: object) -> str:
    """A code span that nothing in the value can end."""
    shown = line(value)
    fence = "`" * (_ticks(shown) + 1)
    pad = " " if "`" in shown or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def prose(value: object) -> str:
    """Text in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~!])", r"\\\1", line(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown; a bar does not end a cell, not even in code."""
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([*head], ["---"] * len(head), *cells))


def fenced(language: str, text: str) -> str:
    """A code block that nothing in the text can end."""
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
