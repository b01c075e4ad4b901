"""Rows to examples: which cell is which field, what a label is called, and what is wrong with a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptask.config import Data, Files
from gptask.data.reading import Row, Source, read
from gptask.errors import DataError, UserError, listing, nearest
from gptask.task import Example, Field, Kind, Task

MISSING = object()


class Columns:
    """Turns rows into examples of one task, by ``data.columns``, ``data.labels`` and the task's fields."""

    def __init__(self, task: Task, options: Data, fields: list[Field] | None = None) -> None:
        self.task, self.options = task, options
        self.fields = fields if fields is not None else task.fields()
        known = {f.name for f in task.fields()}
        for name in options.columns:
            if name not in known and name != "id":
                raise UserError(
                    f"data.columns.{name}: the task has no field '{name}'; it has {listing(sorted(known))}."
                    f"{nearest(name, known)}"
                )
        self.names = label_names(options)

    @property
    def wanted(self) -> list[str]:
        """Column names that the fields are read from."""
        return [str(self.options.columns.get(f.name, f.name)) for f in self.fields]

    def example(self, row: Row) -> Example:
        """One example, or `DataError` without the file (the caller knows it)."""
        if isinstance(row.value, DataError):
            raise row.value
        example = {f.name: self._value(row, f) for f in self.fields}
        identifier = _cell(row.value, self.options.columns.get("id", "id"))
        if identifier not in (MISSING, None, ""):
            example["id"] = str(identifier)
        return example

    def _value(self, row: Row, field: Field) -> Any:
        value = row.value
        column = self.options.columns.get(field.name, field.name)
        if isinstance(value, str) and len([f for f in self.fields if f.required]) == 1:
            cell = value if field.required else MISSING
        else:
            cell = _cell(value, column)
        if cell is MISSING or cell is None:
            if not field.required:
                return _empty(field.kind)
            raise DataError(self._missing(value, field, column, cell is None))
        converted = _convert(cell, field, self)
        if field.required and field.kind in (Kind.TEXT, Kind.LABEL) and not converted.strip():
            raise DataError(f"the {field.name} is empty")
        return converted

    def _missing(self, value: Any, field: Field, column: Any, null: bool) -> str:
        if null:
            return f"the {field.name} is null"
        if isinstance(value, str):
            return (
                f"a plain line can't be split into {listing(f.name for f in self.fields if f.required)}; set "
                "data.pattern, data.columns.<field>=<position> or data.format"
            )
        if isinstance(value, list):
            return (
                f"no column {column!r} for {field.name}: the row has {len(value)} cells without names; "
                f"set data.columns.{field.name}=<0 to {len(value) - 1}>"
            )
        there = listing(value)
        hint = nearest(str(column), value)
        return (
            f"no column '{column}' for {field.name}; there are: {there}.{hint} Set data.columns.{field.name}=<column>"
            " (a file without a header: data.header=false and positions)"
        )

    def label(self, raw: Any) -> str:
        """The name of a label as the file has it."""
        text = str(int(raw)) if isinstance(raw, bool) else str(raw).strip()
        if not self.names or text in self.names.values():
            return text
        if text not in self.names:
            start = " (ids counted from 1? data.label_start=1)" if text.isdigit() else ""
            raise DataError(f"label '{text}' is not in data.labels: {listing(self.names)}{start}")
        return self.names[text]

    def labels(self, raw: Any) -> list[str]:
        """The names of a row's labels, from a list or a separated string."""
        parts = raw if isinstance(raw, list) else str(raw).split(self.options.label_separator)
        return [self.label(part) for part in parts if str(part).strip()]


def _cell(value: Any, column: Any) -> Any:
    if isinstance(value, list):
        position = int(column) if str(column).isdigit() else -1
        return value[position] if 0 <= position < len(value) else MISSING
    if isinstance(value, Mapping):
        if column in value:
            return value[column]
        if str(column).isdigit() and int(column) < len(value):
            return list(value.values())[int(column)]
        head, dot, rest = str(column).partition(".")
        return _cell(value[head], rest) if dot and isinstance(value.get(head), Mapping) else MISSING
    return MISSING


def _empty(kind: Kind) -> Any:
    return [] if kind in (Kind.TEXTS, Kind.LABELS, Kind.INTEGERS) else None


def _convert(cell: Any, field: Field, columns: Columns) -> Any:
    try:
        match field.kind:
            case Kind.TEXT:
                return " ".join(map(str, cell)) if isinstance(cell, list) else str(cell)
            case Kind.TEXTS:
                return [str(part) for part in cell] if isinstance(cell, list) else [str(cell)]
            case Kind.LABEL:
                return columns.label(cell)
            case Kind.LABELS:
                return columns.labels(cell)
            case Kind.INTEGERS:
                return [int(part) for part in (cell if isinstance(cell, list) else [cell])]
            case Kind.NUMBER:
                return float(cell)
    except (TypeError, ValueError) as error:
        raise DataError(f"the {field.name} must be {field.kind.value}, got {str(cell)[:40]!r}") from error


def label_names(options: Data) -> dict[str, str]:
    """``data.labels`` as id → name: a map, a list, or a file (JSON, ``id TAB name`` or a name a line)."""
    labels = options.labels
    if labels is None:
        return {}
    if isinstance(labels, str):
        labels = _label_file(labels, options)
    if isinstance(labels, Mapping):
        return {str(key): str(name) for key, name in labels.items()}
    return {str(number): str(name) for number, name in enumerate(labels, options.label_start)}


def _label_file(name: str, options: Data) -> Any:
    import json

    path = Source.parse(name, getattr(options, "root", None)).path
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    lines = [str(row.value).strip() for row in read(Source(path), Files(format="lines"), ()) if str(row.value).strip()]
    pairs = [line.split("\t", 1) for line in lines]
    return {key: name.strip() for key, name in pairs} if all(len(p) == 2 for p in pairs) else lines
