"""Which columns a field is read from, by ``data.columns``, and the cell of a column in a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptask.data.cells import plain_cell
from gptask.data.literals import parse_container
from gptask.data.rows import is_index
from gptask.errors import UserError

MISSING = object()  # there is no such cell; a cell that is null is None


def cell_at(row: Any, column: str) -> Any:
    """The cell of a column, which is a name, a position or a dotted path (in this order), or MISSING."""
    if isinstance(row, dict):
        if column in row:
            return row[column]
        if is_index(column) and int(column) < len(row):
            return list(row.values())[int(column)]
        name, dot, path = column.partition(".")
        if not dot or name not in row:
            return MISSING
        content = parse_container(row[name]) if isinstance(row[name], str) else plain_cell(row[name])
        return cell_at(content, path)
    if isinstance(row, list):
        if is_index(column):
            return row[int(column)] if int(column) < len(row) else MISSING
        if row and all(isinstance(part, dict) and column in part for part in row):
            return [part[column] for part in row]
    return MISSING


def column_name(row: Any, column: str) -> str:
    """The name of the column at a position of a row with names; any other column as it is."""
    is_position = is_index(column) and isinstance(row, dict) and column not in row and int(column) < len(row)
    return str(list(row)[int(column)]) if is_position else column


def columns_by_name(columns: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """``data.columns`` with every column as a text; an entry that is null counts as not set."""
    by_name: dict[str, str | list[str]] = {}
    for name, value in columns.items():
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, str | int) for part in parts if value is not None):
            raise UserError(f"data.columns.{name}={value!r}: expected a column's name or position, or a list of them")
        if value is not None:
            by_name[name] = [str(part) for part in parts] if isinstance(value, list) else str(value)
    return by_name


def trained_columns(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns, by field, that a run with these options of ``data`` read; positions are left out."""
    columns: dict[str, list[str]] = {}
    for option in ("columns", "validation_columns", "test_columns"):
        for name, column in columns_by_name(data.get(option) or {}).items():
            if isinstance(column, str) and not is_index(column) and name != "id":
                columns.setdefault(name, []).append(column)
    return columns
