"""Rows to examples: which cell is which field, what a label is called, and what is wrong with a row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from gptask.config.schemas import Data, Files
from gptask.data.messages import parse_messages
from gptask.data.reading import read
from gptask.data.rows import Row, Source
from gptask.data.words import words
from gptask.errors import DataError, UserError, listing, nearest
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Field, Kind

Converter = Callable[[Any], Any]  # a cell to a field's value; raises TypeError or ValueError for one of another kind

MISSING = object()  # there is no such cell; a cell that is null is None
EMPTY_VALUES: dict[Kind, Any] = {Kind.TEXTS: [], Kind.LABELS: [], Kind.INTEGERS: [], Kind.MESSAGES: []}
NON_EMPTY_KINDS = (Kind.TEXT, Kind.TEXTS, Kind.LABEL, Kind.TOKENS, Kind.MESSAGES)  # LABELS may be an empty list
ALIGNED_KINDS = {Kind.TOKENS: 0, Kind.TAGS: -1}  # of equal length; the position of each in rows without names (CoNLL)


class Columns:
    """Turns rows into examples of one task, by ``data.columns``, ``data.labels`` and the task's fields.

    ``fields`` are the fields to read, all of the task's by default; prediction reads the inputs alone.
    """

    def __init__(self, task: Task, options: Data, fields: list[Field] | None = None) -> None:
        self.fields = fields if fields is not None else task.fields()
        task_names = {field.name for field in task.fields()}
        for name in options.columns:
            if name not in task_names and name != "id":
                raise UserError(
                    f"data.columns.{name}: the task has no field '{name}'; it has {listing(sorted(task_names))}."
                    f"{nearest(name, task_names)}"
                )
        self.column_of = {name: str(column) for name, column in options.columns.items()}
        self.id_required = "id" in options.columns and fields is None  # a row to be predicted needs no id
        self.group = options.group if fields is None else None
        self.label_separator = options.label_separator
        self.names = label_names(options)  # label id → name
        self.unambiguous_names = set(self.names.values()) - set(self.names)  # names that are not an id as well
        converters = self._converters()
        self.columns = [(f, self.column_of.get(f.name, f.name), converters[f.kind]) for f in self.fields]
        self.required = [field.name for field in self.fields if field.required]
        self.non_empty = {f.name for f in self.fields if f.required and not f.blank and f.kind in NON_EMPTY_KINDS}
        self.aligned = [field.name for field in self.fields if field.kind in ALIGNED_KINDS]
        self.has_tags = any(field.kind is Kind.TAGS for field in self.fields)
        converts_rows = getattr(type(task), "convert_row", Task.convert_row) is not Task.convert_row
        self.convert_row: Converter | None = task.convert_row if converts_rows else None

    def _converters(self) -> dict[Kind, Converter]:
        return {
            Kind.TEXT: _joined_text,
            Kind.TEXTS: _texts,
            Kind.LABEL: self.label,
            Kind.LABELS: self.labels,
            Kind.INTEGERS: _integers,
            Kind.NUMBER: _finite_number,
            Kind.MESSAGES: parse_messages,
            Kind.TOKENS: self.tokens,
            Kind.TAGS: self.tags,
        }

    @property
    def header_names(self) -> list[str]:
        """The names that mark a row as the header: fields and their columns, but no number (it may be a label)."""
        names = [name for field, column, _ in self.columns for name in (field.name, column)]
        return [name for name in [*names, *filter(None, [self.group])] if not name.isdigit()]

    def example(self, row: Row) -> Example:
        """Turn a row into an example; the caller adds the file and line to a `DataError`."""
        if isinstance(row.value, DataError):
            raise row.value
        cells: Any = row.value
        if self.convert_row:
            cells = self.convert_row(cells | self._mapped_cells(cells) if isinstance(cells, dict) else cells)
            if not isinstance(cells, dict | list | str):
                raise TypeError(f"Task.convert_row() must return the cells of a row, got {cells!r}")
        example = {field.name: self._value(cells, field, column, convert) for field, column, convert in self.columns}
        lengths = {name: len(example[name]) for name in self.aligned if example[name] is not None}
        if len(set(lengths.values())) > 1:
            counts = listing(f"{length} {name}" for name, length in lengths.items())
            raise DataError(f"{listing(lengths)} must have the same length, got {counts}")
        example_id = _cell(row.value, self.column_of.get("id", "id"))
        if example_id is MISSING and self.id_required:
            raise DataError(self._no_column(row.value, "id", self.column_of["id"]))
        if example_id is not MISSING and example_id not in (None, ""):
            example["id"] = str(example_id)
        if self.group:
            example["group"] = self._group_value(row.value, self.group)
        return example

    def _group_value(self, row: Any, column: str) -> str:
        """The text in the column ``data.group``; raises `DataError` for a row without it."""
        cell = _cell(row, column)
        if cell is MISSING:
            names = [str(name)[:40] for name in row] if isinstance(row, dict) else []
            there = f"there are: {listing(names)}.{nearest(column, names)}" if names else "the cells have no names"
            raise DataError(f"no column '{column}' for data.group; {there}")
        if isinstance(cell, list | dict):
            raise DataError(f"the {column} (data.group) must be one value, got {str(cell)[:40]!r}")
        if cell is None or cell != cell or not (text := _text(cell).strip()):  # not even equal to itself: NaN
            raise DataError(f"the {column} (data.group) is empty")
        return text

    def _mapped_cells(self, row: dict[str, Any]) -> dict[str, Any]:
        """The cells that ``data.columns`` names, under the names of their fields."""
        cells = {name: _cell(row, column) for name, column in self.column_of.items() if name != "id"}
        return {name: cell for name, cell in cells.items() if cell is not MISSING}

    def _value(self, row: Any, field: Field, column: str, convert: Converter) -> Any:
        """The value of one field; raises `DataError` for a cell that is missing, null, empty or of another kind."""
        cell = self._field_cell(row, field, column)
        if cell is MISSING and (field.name in self.column_of or field.required):
            raise DataError(self._no_column(row, field.name, column))
        if cell is MISSING or cell is None:
            if field.required:
                raise DataError(f"the {field.name} is null")
            return EMPTY_VALUES.get(field.kind)
        try:
            value = convert(cell)
        except UnicodeEncodeError as error:
            raise DataError(f"the {field.name} holds half a surrogate pair, which is not a character") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"the {field.name} must be {field.kind.value}, got {str(cell)[:40]!r}") from error
        if field.name in self.non_empty and (not value or (isinstance(value, str) and value.isspace())):
            raise DataError(f"the {field.name} is empty")
        return value

    def _field_cell(self, row: Any, field: Field, column: str) -> Any:
        """The cell of a field, or MISSING."""
        if isinstance(row, str) and field.required and len(self.required) == 1:
            return row
        cell = _cell(row, field.name) if self.convert_row else MISSING  # a converted row names cells like the fields
        if cell is MISSING:
            cell = _cell(row, column)
        if cell is MISSING and isinstance(row, list) and field.kind in ALIGNED_KINDS:
            position = ALIGNED_KINDS[field.kind]
            if field.name not in self.column_of and len(row) > -position:
                return row[position]
        return cell

    def _no_column(self, row: Any, name: str, column: str) -> str:
        """The message for a row without the column of a field, with the columns it has."""
        if isinstance(row, str):
            return (
                f"a plain line can't be split into {listing(self.required)}; set data.pattern or "
                "data.columns.<field>=<position>, or give a file for each ({field: file})"
            )
        hint = " The row has a single cell: is data.format right?" if len(row) == 1 else ""
        if isinstance(row, list):
            return (
                f"no column '{column}' for {name}: the row has {len(row)} cells without names; "
                f"set data.columns.{name}=<position from 0>.{hint}"
            )
        columns = [str(key)[:40] for key in row]
        return (
            f"no column '{column}' for {name}; there are: {listing(columns)}.{nearest(column, columns)} Set "
            f"data.columns.{name}=<column>, or for a table without header data.header=false and positions.{hint}"
        )

    def label(self, raw: Any) -> str:
        """The name of a label, from its id or name in the file."""
        if isinstance(raw, bool) or (isinstance(raw, float) and raw.is_integer()):
            raw = int(raw)
        text = _text(raw).strip()
        if not text or not self.names or text in self.unambiguous_names:
            return text
        if text not in self.names:
            hint = " (ids counted from 1? data.label_start=1)" if text.isdigit() else ""
            raise DataError(f"label '{text[:40]}' is not in data.labels: {listing(self.names)}{hint}")
        return self.names[text]

    def labels(self, raw: Any) -> list[str]:
        """The names of a row's labels, from a list or a separated string."""
        parts = raw if isinstance(raw, list) else str(raw).split(self.label_separator or None)
        return [self.label(part) for part in parts if str(part).strip()]

    def tokens(self, raw: Any) -> list[str]:
        """The words of a list or a text; a text is split at spaces where the task has tags, else by `words`."""
        if not isinstance(raw, list):
            return _text(raw).split() if self.has_tags else words(_text(raw))
        return _require_non_empty("token", [_text(part) for part in raw])

    def tags(self, raw: Any) -> list[str]:
        """The names of the words' labels, from a list or from a text with spaces between them."""
        parts = raw if isinstance(raw, list) else _text(raw).split()
        return _require_non_empty("tag", [self.label(part) for part in parts])


def _require_non_empty(noun: str, texts: list[str]) -> list[str]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise DataError(f"{noun} {number} of {len(texts)} is empty")
    return texts


def _cell(row: Any, column: str) -> Any:
    """The cell of a column, which is a name, a position or a dotted path (in this order), or MISSING."""
    if isinstance(row, dict):
        if column in row:
            return row[column]
        if column.isdigit() and int(column) < len(row):
            return list(row.values())[int(column)]
        name, dot, path = column.partition(".")
        return _cell(row[name], path) if dot and name in row else MISSING
    if isinstance(row, list):
        if column.isdigit():
            return row[int(column)] if int(column) < len(row) else MISSING
        if row and all(isinstance(part, dict) and column in part for part in row):
            return [part[column] for part in row]
    return MISSING


def _text(cell: Any) -> str:
    if isinstance(cell, list | dict):
        raise TypeError
    text = str(cell)
    if not text.isascii():
        text.encode()  # raises UnicodeEncodeError for half a surrogate pair
    return text


def _joined_text(cell: Any) -> str:
    return " ".join(map(_text, cell)) if isinstance(cell, list) else _text(cell)


def _texts(cell: Any) -> list[str]:
    texts = [_text(part) for part in cell] if isinstance(cell, list) else [_text(cell)]
    return texts if any(text.strip() for text in texts) else []


def _integers(cell: Any) -> list[int]:
    return [int(part) for part in (cell if isinstance(cell, list) else [cell])]


def _finite_number(cell: Any) -> float:
    number = float(cell)
    if not math.isfinite(number):  # one NaN makes the loss and every mean NaN
        raise ValueError
    return number


def label_names(options: Data) -> dict[str, str]:
    """``data.labels`` as id → name: a map, a list, or a file (JSON, ``id TAB name`` or a name a line)."""
    labels = options.labels
    if isinstance(labels, str):
        labels = _read_label_file(labels, options)
    if isinstance(labels, Mapping):
        return {str(key): str(name) for key, name in labels.items()}
    if not isinstance(labels, list | None):
        raise UserError(f"data.labels must be a map, a list or a file with one, got {str(options.labels)[:40]!r}")
    return {str(number): str(name) for number, name in enumerate(labels or [], options.label_start)}


def _read_label_file(file_name: str, options: Data) -> Any:
    path = Source.parse(file_name, getattr(options, "root", None)).path
    if path.suffix.lower() == ".json":
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(f"data.labels: {path} is not valid JSON: {error}") from error
    rows = read(Source(path), Files(format="lines", encoding=getattr(options, "encoding", "utf-8")), ())
    lines = [line for row in rows if (line := str(row.value).strip())]
    pairs = [line.split("\t", 1) for line in lines]
    return {key: name.strip() for key, name in pairs} if all(len(pair) == 2 for pair in pairs) else lines
