"""The lines that `gptask predict` writes, as JSON; each is in its file at once and whole."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gptask.data.columns import Columns
from gptask.data.rows import is_index
from gptask.plugins.types import Kind
from gptask.runs.atomic_write import finite
from gptask.runs.predictor import InputRow

NAMES = ("row", "prediction", "score", "samples", "probabilities", "extra", "rest", "error")  # of what is written


class Line(NamedTuple):
    """One line of output: the input's row number and cells, what was predicted (`prediction_fields`), or the error."""

    number: int
    cells: Mapping[str, Any]
    fields: Mapping[str, Any]
    error: str | None


class PredictionWriter(ABC):
    """Writes predictions in one format, to what takes its text or bytes."""

    @abstractmethod
    def write(self, line: Line) -> None:
        """Add a row."""

    def end_window(self) -> dict[str, Any] | None:
        """Write the rows so far; return what `restore` needs to go on after them, None while rows must wait."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most formats have no state)
        """Go on after a window."""

    def close(self) -> None:  # noqa: B027
        """Write what is held back."""


class WholeLines:
    """Writes lines to a file such that an interruption or a full disk leaves no part of one."""

    def __init__(self, stream: io.FileIO) -> None:
        self.stream = stream

    def write(self, line: bytes) -> None:
        """Write a line."""
        data = memoryview(line)
        start = self.stream.tell() if self.stream.seekable() else None
        try:
            while data:
                data = data[self.stream.write(data) :]
        except BaseException:
            with suppress(OSError):  # a device has no length
                if start is not None:
                    self.stream.truncate(start)
            raise


def renamed_cells(cells: Mapping[str, Any], taken: Sequence[str]) -> dict[str, Any]:
    """The input's cells under names that are `encodable`, with ``input_`` before those that the output needs itself."""
    renamed = {}
    for name, value in cells.items():
        new_name = encodable(name)
        while new_name in taken or (new_name != name and new_name in cells):
            new_name = f"input_{new_name}"
        renamed[new_name] = value
    return renamed


def input_cells(entry: InputRow, columns: Columns, column_names: dict[str, Any]) -> dict[str, Any]:
    """The task's fields, then all other cells of the row, cells without a name under their position.

    ``column_names`` are the columns of fields that the user names; a cell that a field is read from, by these or by
    the run's names, is not repeated.
    """
    value, example = entry.row.value, entry.example
    others: dict[str, Any] = {}
    if isinstance(value, dict | list):
        others = {str(name): cell for name, cell in (value.items() if isinstance(value, dict) else enumerate(value))}
    elif isinstance(value, str) and not isinstance(example, dict):
        others = {columns.required[0] if len(columns.required) == 1 else "line": value}
    names, cells = list(others), dict[str, Any]()
    for field in columns.fields:
        named = (name for name in columns.accepted_names(field.name) if name in others)
        default = "0" if field.kind is Kind.TOKENS and isinstance(value, list) else next(named, field.name)
        column = str(column_names.get(field.name, default))
        if column not in others and field.name not in column_names:
            column = next((name for name in columns.trained_columns.get(field.name, ()) if name in others), column)
        column = names[int(column)] if is_index(column) and int(column) < len(names) else column
        candidates = (column, *columns.trained_columns.get(field.name, []))
        cell = others.pop(next((name for name in candidates if name in others), column), None)
        cells[field.name] = example[field.name] if isinstance(example, dict) else cell
    if "id" in column_names:
        cells["id"] = others.pop(str(column_names["id"]), None)
    return cells | renamed_cells(others, list(cells))


class JsonLines(PredictionWriter):
    """JSON objects, one a line; ``ascii_only`` makes them readable whatever encoding a terminal has."""

    def __init__(self, write: Callable[[str], None], ascii_only: bool = False) -> None:
        self._write, self.ascii_only = write, ascii_only

    def write(self, line: Line) -> None:
        """Write a line."""
        values = {"row": line.number, **renamed_cells(line.cells, NAMES), **line.fields}
        values |= {} if line.error is None else {"error": line.error}
        self._write(as_json(encodable(values), self.ascii_only) + "\n")


def as_json(value: Any, ascii_only: bool = False) -> str:
    """JSON with dates in ISO form, decimal numbers and other kinds as text, and null for a number that isn't finite."""
    return json.dumps(finite(value), ensure_ascii=ascii_only, default=_text_of, allow_nan=False)


def _text_of(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def encodable(value: Any) -> Any:
    """The value; in a text, half a surrogate pair, which UTF-8 lacks, as its number."""
    if isinstance(value, list):
        return [encodable(part) for part in value]
    if isinstance(value, dict):
        return {encodable(name): encodable(part) for name, part in value.items()}
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
