"""A cell to the value of a field, by the field's kind; labels are in their own module."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from gptask.data.literals import parse_container
from gptask.data.words import is_blank, words
from gptask.errors import DataError, listing
from gptask.plugins.types import Kind

MAX_DIGITS = 100  # of a whole number, zeros before it included
WHOLE_NUMBER = re.compile(r"\s*([+-]?\d+)(?:\.0*)?\s*", re.ASCII)
EXPECTED = {  # what a message says of each kind
    Kind.TEXT: "a text",
    Kind.TEXTS: "a text or a list of texts",
    Kind.LABEL: "one label",
    Kind.LABELS: "a list of labels",
    Kind.INTEGERS: "whole numbers, such as 3 or [3, 7]",
    Kind.NUMBER: "a number",
    Kind.MESSAGES: "a list of messages",
    Kind.TOKENS: "a text or a list of words",
    Kind.TAGS: "a list of labels, one for each word",
}


def plain_cell(cell: Any) -> Any:
    """A cell without numpy's and pandas' types: arrays are lists, and every missing value (NaN, NA, NaT) is None."""
    if isinstance(cell, str | int | list | dict | None):
        return cell
    if hasattr(cell, "tolist"):  # an array or a scalar of numpy
        cell = cell.tolist()
    if isinstance(cell, tuple | set | frozenset):
        return list(cell)
    is_missing = type(cell).__name__ == "NAType" or (not isinstance(cell, list) and cell != cell)
    return None if is_missing else cell


def is_blank_cell(cell: Any) -> bool:
    """Whether a cell is a text without content, as an empty cell of a table is."""
    return isinstance(cell, str) and is_blank(cell)


def wrong_kind(name: str, kind: Kind, column: str, cell: Any) -> DataError:
    """The error for a cell that does not fit the kind of the field ``name``."""
    hint = ""
    if isinstance(cell, str) and kind is Kind.NUMBER and re.fullmatch(r"[+-]?[\d.]*,\d+", cell.strip()):
        hint = "; decimals are written with a point"
    if kind is Kind.LABEL:
        hint = "; does the task have an option for several labels an example?"
    content = parse_container(cell) if isinstance(cell, str) and kind is not Kind.TEXT else cell
    content = content[0] if isinstance(content, list) and content else content
    if isinstance(content, dict) and content and kind is not Kind.MESSAGES and not {"start", "end"} <= content.keys():
        members = [str(member) for member in content]
        hint = f"; it has the members {listing(members)}: name one by a path, data.columns.{name}={column}.{members[0]}"
    return DataError(f"the {name} must be {EXPECTED[kind]}, got {str(cell)[:40]!r}{hint}")


def text(cell: Any) -> str:
    """A text, bytes that are UTF-8, or a scalar as JSON writes it.

    Raises `TypeError` for a list or an object, `ValueError` for a number that is not finite.
    """
    if isinstance(cell, list | dict):
        raise TypeError
    if isinstance(cell, bytes):
        return cell.decode()  # raises UnicodeDecodeError, a ValueError
    if isinstance(cell, float) and not math.isfinite(cell):  # JSON has none, though Python reads them
        raise ValueError
    written = str(cell).lower() if isinstance(cell, bool) else str(cell)
    if not written.isascii():
        written.encode()  # raises UnicodeEncodeError for half a surrogate pair
    return written


def joined_text(cell: Any) -> str:
    """A text; the texts of a list are joined by spaces. A text that begins like a list stays a text."""
    if not isinstance(cell, list):
        return text(cell)
    return " ".join(text(part) for part in map(plain_cell, cell) if part is not None)


def texts(cell: Any) -> list[str]:
    """One text or several, also of a list written as text, without members that are null or blank."""
    content = parse_container(cell) if isinstance(cell, str) else cell
    if isinstance(cell, str) and _is_one_text(cell, content):
        content = None
    parts = content if isinstance(content, list) else [cell if content is None else content]
    members = [text(part) for part in map(plain_cell, parts) if part is not None]
    return [member for member in members if not is_blank(member)]


def _is_one_text(cell: str, content: list[Any] | dict[Any, Any] | None) -> bool:
    """Whether brackets may be part of the text to write.

    They are in JSON of an object that holds no list (of answers, say), and around numbers in parentheses or braces,
    such as the point (1, 2).
    """
    if isinstance(content, dict):
        is_json = cell.lstrip("{ \n").startswith(('"', "}"))
        return is_json and not any(isinstance(value, list) for value in content.values())
    is_list = content is None or cell.lstrip().startswith(("[", "array("))
    return not is_list and not any(isinstance(part, str) for part in content or [])


def integers(cell: Any) -> list[int]:
    """Whole numbers in any spelling, from one or a list, also of a list written as text."""
    content = parse_container(cell) if isinstance(cell, str) else cell
    return [_whole_number(plain_cell(part)) for part in (content if isinstance(content, list) else [cell])]


def _whole_number(cell: Any) -> int:
    """A whole number of 64 bits.

    Raises `TypeError` or `ValueError` for a fraction, a boolean, a null or another text, `DataError` for a larger one.
    """
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        raise TypeError
    if isinstance(cell, str):
        if not (match := WHOLE_NUMBER.fullmatch(cell)):
            raise ValueError
        cell = match[1]
    elif not float(cell).is_integer():
        raise ValueError
    if len(str(cell)) > MAX_DIGITS or not -(2**63) <= int(cell) < 2**63:
        raise DataError(f"a whole number of more than 64 bits: {str(cell)[:40]}")
    return int(cell)


def number(cell: Any) -> float:
    """A finite number: one NaN makes the loss and every mean NaN."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):  # Python reads 1_000
        raise TypeError
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError
    return value


def tokens(cell: Any, has_tags: bool) -> list[str]:
    """The words of a list (also written as text) or a text; split at spaces where the task has tags, else by `words`.

    Raises `DataError` for a word that is empty or null, which a tag would stand for. One of invisible characters is a
    word: corpora of posts have such.
    """
    content = parse_container(cell) if isinstance(cell, str) else cell
    has_words = isinstance(content, list) and (not content or any(isinstance(part, str) for part in content))
    if not isinstance(content, list) or (isinstance(cell, str) and not has_words):  # [1] is a text with a number
        return text(cell).split() if has_tags else words(text(cell))
    return [text(part) for part in present("token", content, lambda part: isinstance(part, str) and not part.strip())]


def present(noun: str, parts: list[Any], is_empty: Callable[[Any], bool] = is_blank_cell) -> list[Any]:
    """The parts of a list, none of which is null or empty; raises `DataError` with the place of one that is."""
    parts = [plain_cell(part) for part in parts]
    for place, part in enumerate(parts, 1):
        if part is None or is_empty(part):
            raise DataError(f"{noun} {place} of {len(parts)} is {'null' if part is None else 'empty'}")
    return parts
