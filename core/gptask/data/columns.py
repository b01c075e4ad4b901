"""Rows to examples: which cell is which field, what a label is called, and what is wrong with a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gptask.config.schemas import Data
from gptask.data import cells as conversion
from gptask.data.cells import is_blank_cell, plain_cell, wrong_kind
from gptask.data.labels import LabelReader
from gptask.data.literals import parse_container
from gptask.data.messages import parse_messages
from gptask.data.rows import EVERY_NAME, Row, TableCells
from gptask.errors import DataError, UserError, listing, nearest
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Field, Kind

Converter = Callable[[Any], Any]  # a cell to a field's value; raises TypeError or ValueError for one of another kind

MISSING = object()  # there is no such cell; a cell that is null is None
EMPTY_VALUES: dict[Kind, Any] = {Kind.TEXTS: [], Kind.LABELS: [], Kind.INTEGERS: [], Kind.MESSAGES: []}
NON_EMPTY_KINDS = (Kind.TEXT, Kind.TEXTS, Kind.LABEL, Kind.TOKENS, Kind.MESSAGES)  # LABELS may be an empty list
BLANK_IS_NULL = (Kind.INTEGERS, Kind.NUMBER)  # kinds for which an empty cell of a table is null
SEVERAL_COLUMNS_KINDS = (Kind.LABELS,)  # of fields that may be read from several columns
ALIGNED_KINDS = {Kind.TOKENS: 0, Kind.TAGS: -1}  # of equal length; the position of each in rows without names (CoNLL)


class Columns:
    """Turns rows into examples of one task, by ``data.columns``, ``data.labels`` and the task's fields.

    ``fields`` are the fields to read, all of the task's by default; prediction reads the inputs alone.
    """

    def __init__(self, task: Task, options: Data, fields: list[Field] | None = None) -> None:
        self.fields = fields if fields is not None else task.fields()
        kinds = {field.name: field.kind for field in task.fields()}
        task_names = kinds.keys()
        for name, column in options.columns.items():
            if name not in task_names and name != "id":
                raise UserError(
                    f"data.columns.{name}: the task has no field '{name}'; it has {listing(sorted(task_names))}."
                    f"{nearest(name, task_names)}"
                )
            if isinstance(column, list) and kinds.get(name) not in SEVERAL_COLUMNS_KINDS:
                raise UserError(f"data.columns.{name}={column}: {name} takes one column, not several")
        self.column_of: dict[str, str | list[str]] = {
            name: [str(one) for one in column] if isinstance(column, list) else str(column)
            for name, column in options.columns.items()
        }
        self.id_required = "id" in options.columns and fields is None  # a row to be predicted needs no id
        self.label_reader = LabelReader(options)
        self.names = self.label_reader.names  # label id → name
        self.has_tags = any(field.kind is Kind.TAGS for field in self.fields)
        converters = self._converters()
        self.columns = [(f, self.column_of.get(f.name, f.name), converters[f.kind]) for f in self.fields]
        self.required = [field.name for field in self.fields if field.required]
        self.non_empty = {f.name for f in self.fields if f.required and not f.blank and f.kind in NON_EMPTY_KINDS}
        self.aligned = [field.name for field in self.fields if field.kind in ALIGNED_KINDS]
        converts_rows = getattr(type(task), "convert_row", Task.convert_row) is not Task.convert_row
        self.convert_row: Converter | None = task.convert_row if converts_rows else None

    def _converters(self) -> dict[Kind, Converter]:
        return {
            Kind.TEXT: conversion.joined_text,
            Kind.TEXTS: conversion.texts,
            Kind.LABEL: self.label_reader.label,
            Kind.LABELS: self.label_reader.labels,
            Kind.INTEGERS: conversion.integers,
            Kind.NUMBER: conversion.number,
            Kind.MESSAGES: parse_messages,
            Kind.TOKENS: partial(conversion.tokens, has_tags=self.has_tags),
            Kind.TAGS: self.label_reader.tags,
        }

    @property
    def header_names(self) -> list[str]:
        """The names that are looked for in a file: fields and their columns, but no number (it may be a label).

        Where the task converts rows itself, it may look at any name.
        """
        names = [name for field, column, _ in self.columns for name in (field.name, *_as_list(column))]
        names = [name for name in names if not name.isdigit()]
        return [*names, EVERY_NAME] if self.convert_row else names

    def example(self, row: Row) -> Example:
        """Turn a row into an example; the caller adds the file and line to a `DataError`."""
        if isinstance(row.value, DataError):
            raise row.value
        cells: Any = row.value
        if self.convert_row:
            if isinstance(cells, dict):
                cells = {name: plain_cell(cell) for name, cell in cells.items()}
                cells |= self._mapped_cells(cells)
            cells = self.convert_row(cells)
            if not isinstance(cells, dict | list | str):
                raise TypeError(f"Task.convert_row() must return the cells of a row, got {cells!r}")
        example = {field.name: self._value(cells, field, column, convert) for field, column, convert in self.columns}
        lengths = {name: len(example[name]) for name in self.aligned if example[name] is not None}
        if len(set(lengths.values())) > 1:
            counts = listing(f"{length} {name}" for name, length in lengths.items())
            raise DataError(f"{listing(lengths)} must have the same length, got {counts}")
        id_column = str(self.column_of.get("id", "id"))
        example_id = plain_cell(_cell(row.value, id_column))
        if example_id is MISSING and self.id_required:
            raise DataError(self._no_column(row.value, "id", id_column))
        if example_id is not MISSING and example_id not in (None, ""):
            example["id"] = str(example_id)
        return example

    def _mapped_cells(self, row: dict[str, Any]) -> dict[str, Any]:
        """The cells that ``data.columns`` names, under the names of their fields."""
        cells = {name: self._cell_of(row, column) for name, column in self.column_of.items() if name != "id"}
        return {name: cell for name, cell in cells.items() if cell is not MISSING}

    def _value(self, row: Any, field: Field, column: str | list[str], convert: Converter) -> Any:
        """The value of one field; raises `DataError` for a cell that is missing, null, empty or of another kind."""
        cell = plain_cell(self._field_cell(row, field, column))
        if cell is MISSING and (field.name in self.column_of or field.required):
            raise DataError(self._no_column(row, field.name, str(column)))
        if cell is MISSING or cell is None or (field.kind in BLANK_IS_NULL and is_blank_cell(cell)):
            if field.required:
                raise DataError(f"the {field.name} is null")
            return EMPTY_VALUES.get(field.kind)
        try:
            value = convert(cell)
        except UnicodeEncodeError as error:
            raise DataError(f"the {field.name} holds half a surrogate pair, which is not a character") from error
        except (TypeError, ValueError) as error:
            raise wrong_kind(field.name, field.kind, str(column), cell) from error
        if field.name in self.non_empty and (not value or is_blank_cell(value)):
            raise DataError(f"the {field.name} is empty")
        return value

    def _field_cell(self, row: Any, field: Field, column: str | list[str]) -> Any:
        """The cell of a field, or MISSING."""
        if isinstance(row, str) and field.required and len(self.required) == 1:
            return row
        cell = _cell(row, field.name) if self.convert_row else MISSING  # a converted row names cells like the fields
        if cell is MISSING:
            cell = self._cell_of(row, column)
        if cell is MISSING and isinstance(row, list) and field.kind in ALIGNED_KINDS:
            position = ALIGNED_KINDS[field.kind]
            if field.name not in self.column_of and len(row) > -position:
                return row[position]
        return cell

    def _cell_of(self, row: Any, column: str | list[str]) -> Any:
        """The cell of a column, or MISSING; of several, an object with the cell of each.

        Raises `DataError` for a row that has some of several columns, but not all.
        """
        if isinstance(column, str):
            return _cell(row, column)
        cells = {one: _cell(row, one) for one in column}
        absent = [one for one, cell in cells.items() if cell is MISSING]
        if absent and len(absent) < len(column):
            (name,) = (name for name, value in self.column_of.items() if value is column)
            raise DataError(self._no_column(row, name, absent[0]))
        return MISSING if absent else cells

    def _no_column(self, row: Any, name: str, column: str) -> str:
        """The message for a row without the column of a field, with the columns it has."""
        if isinstance(row, str):
            return (
                f"a plain line can't be split into {listing(self.required)}; set data.pattern or "
                "data.columns.<field>=<position>, or give a file for each ({field: file})"
            )
        hint = " The row has a single cell: is data.format or data.delimiter right?" if len(row) == 1 else ""
        if isinstance(row, list):
            return (
                f"no column '{column}' for {name}: the row has {len(row)} cells without names; "
                f"set data.columns.{name}=<position from 0>.{hint}"
            )
        columns = [str(key)[:40] for key in row]
        in_table = isinstance(row, TableCells)
        no_header = f", or for a table without header data.header=false and positions.{hint}" if in_table else "."
        return (
            f"no column '{column}' for {name}; there are: {listing(columns)}.{nearest(column, columns)} Set "
            f"data.columns.{name}=<column>{no_header}"
        )


def _as_list(column: str | list[str]) -> list[str]:
    return [column] if isinstance(column, str) else column


def _cell(row: Any, column: str) -> Any:
    """The cell of a column, which is a name, a position or a dotted path (in this order), or MISSING."""
    if isinstance(row, dict):
        if column in row:
            return row[column]
        if column.isdigit() and int(column) < len(row):
            return list(row.values())[int(column)]
        name, dot, path = column.partition(".")
        if not dot or name not in row:
            return MISSING
        content = parse_container(row[name]) if isinstance(row[name], str) else plain_cell(row[name])
        return _cell(content, path)
    if isinstance(row, list):
        if column.isdigit():
            return row[int(column)] if int(column) < len(row) else MISSING
        if row and all(isinstance(part, dict) and column in part for part in row):
            return [part[column] for part in row]
    return MISSING
