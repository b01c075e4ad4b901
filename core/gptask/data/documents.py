"""Plain text as documents: lines, paragraphs, sections of a long text, whole files, or what lines in between part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from gptask.config.schemas import Documents, Files
from gptask.data.rows import Lines, Row
from gptask.errors import UserError
from gptask.plugins.task import Task

SECTION = 10_000  # characters after which a section ends at the next blank line, and after twice as many at any


def options_for_task(options: Files, task: Task) -> Files:
    """The options with the task's choice of a document where the user left it open; lines if that was said."""
    if options.documents or options.separator or options.format == "lines":
        return options
    return replace(options, documents=task.documents)


def documents(lines: Lines, options: Files) -> Iterator[Row]:
    """The documents of a plain text, each with the number of its first line.

    Sections, behind one another, are the whole text; blank lines or separators around other documents are left out.
    """
    rule = options.documents or Documents.line
    if options.separator:
        return _parted(lines, _separator(options.separator))
    if rule is Documents.paragraph:
        return _parted(lines, lambda line: not line.strip())
    if rule is Documents.line:
        return (Row(number, text.rstrip("\r\n")) for number, text in lines)
    return _sections(lines, SECTION if rule is Documents.section else None)


def _separator(pattern: str) -> Callable[[str], object]:
    try:
        return re.compile(pattern).fullmatch
    except re.error as error:
        raise UserError(f"data.separator {pattern!r} is no regular expression: {error}") from error


def _parted(lines: Lines, between: Callable[[str], object]) -> Iterator[Row]:
    first, kept = 1, list[str]()
    for number, text in lines:
        line = text.rstrip("\r\n")
        if not between(line):
            kept.append(line)
            continue
        if kept:
            yield Row(first, "\n".join(kept))
        first, kept = number + 1, []
    if kept:
        yield Row(first, "\n".join(kept))


def _sections(lines: Lines, size: int | None) -> Iterator[Row]:
    first, kept, length = 1, list[str](), 0
    for number, text in lines:
        line = text.rstrip("\r\n")
        kept.append(line + "\n" * (len(line) < len(text)))
        length += len(kept[-1])
        if size and length >= (2 * size if line.strip() else size):
            yield Row(first, "".join(kept))
            first, kept, length = number + 1, [], 0
    if kept:
        yield Row(first, "".join(kept))
