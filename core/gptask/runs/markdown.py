"""Markdown from values that may hold anything: file names, options, a user's texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def one_line(value: object) -> str:
    """A value as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def code_span(value: object) -> str:
    """A code span that backticks in the value do not end."""
    text = one_line(value)
    fence = "`" * (_longest_backtick_run(text) + 1)
    pad = " " if "`" in text or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def escaped(value: object) -> str:
    """Text with every Markdown character escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~!])", r"\\\1", one_line(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown cells; bars inside a cell, code included, are escaped."""
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([*head], ["---"] * len(head), *cells))


def fenced(language: str, text: str) -> str:
    """A code block that backticks in the text do not end."""
    fence = "`" * max(3, _longest_backtick_run(text) + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _longest_backtick_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
