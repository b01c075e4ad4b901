"""Plain text as documents: lines, paragraphs, sections of a long text, whole files, or text between separator lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from gptask.config.schemas import Documents, Files
from gptask.data.line_pattern import LinePattern
from gptask.data.rows import Lines, Row
from gptask.plugins.task import Task

SECTION_CHARACTERS = 10_000  # from here a section ends at the next blank line, from twice as many at any line


def options_for_task(options: Files, task: Task) -> Files:
    """The options, with the task's kind of document where neither ``documents``, ``separator`` nor lines are set."""
    if options.documents or options.separator or options.format == "lines":
        return options
    return replace(options, documents=task.documents)


def documents(lines: Lines, options: Files) -> Iterator[Row]:
    """The documents of a plain text, each with the number of its first line.

    Sections, one after another, make up the whole text. Between other documents, blank lines and separators are left
    out.
    """
    kind = options.documents or Documents.line
    if options.separator:
        return _separated(lines, LinePattern(options.separator, "data.separator").fullmatch)
    if kind is Documents.paragraph:
        return _separated(lines, lambda line, number: not line.strip())
    if kind is Documents.line:
        return (Row(number, text.rstrip("\r\n")) for number, text in lines)
    return _sections(lines, SECTION_CHARACTERS if kind is Documents.section else None)


def _separated(lines: Lines, is_separator: Callable[[str, int], object]) -> Iterator[Row]:
    first_line, document = 1, list[str]()
    for number, text in lines:
        line = text.rstrip("\r\n")
        if not is_separator(line, number):
            document.append(line)
            continue
        if document:
            yield Row(first_line, "\n".join(document))
        first_line, document = number + 1, []
    if document:
        yield Row(first_line, "\n".join(document))


def _sections(lines: Lines, min_characters: int | None) -> Iterator[Row]:
    """Sections of at least ``min_characters`` (None: a single one), with line breaks as ``\\n``."""
    first_line, section, length = 1, list[str](), 0
    for number, text in lines:
        line = text.rstrip("\r\n")
        section.append(line + "\n" * (len(line) < len(text)))
        length += len(section[-1])
        if min_characters and length >= (2 * min_characters if line.strip() else min_characters):
            yield Row(first_line, "".join(section))
            first_line, section, length = number + 1, [], 0
    if section:
        yield Row(first_line, "".join(section))
