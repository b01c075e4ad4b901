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

MISSING = object()
EMPTIES: dict[Kind, Any] = {Kind.TEXTS: [], Kind.LABELS: [], Kind.INTEGERS: [], Kind.MESSAGES: []}
FILLED = (Kind.TEXT, Kind.TEXTS, Kind.LABEL, Kind.TOKENS, Kind.MESSAGES)  # must hold something; of labels may be none
ALONG = {Kind.TOKENS: 0, Kind.TAGS: -1}  # equally long, and where they stand in rows without names, as CoNLL has it


class Columns:
    """Turns rows into examples of one task, by ``data.columns``, ``data.labels`` and the task's fields."""

    def __init__(self, task: Task, options: Data, fields: list[Field] | None = None) -> None:
        self.fields = fields if fields is not None else task.fields()
        known = {f.name for f in task.fields()}
        for name in options.columns:
            if name not in known and name != "id":
                raise UserError(
                    f"data.columns.{name}: the task has no field '{name}'; it has {listing(sorted(known))}."
                    f"{nearest(name, known)}"
                )
        self.named = {name: str(column) for name, column in options.columns.items()}
        self.required = [f.name for f in self.fields if f.required]
        self.numbered = "id" in options.columns and fields is None  # to be predicted, a row needs no id
        self.separator = options.label_separator
        self.names = label_names(options)
        self.named_labels = set(self.names.values()) - set(self.names)  # names that can't be mistaken for an id
        convert: dict[Kind, Callable[[Any], Any]] = {
            Kind.TEXT: _joined,
            Kind.TEXTS: _texts,
            Kind.LABEL: self.label,
            Kind.LABELS: self.labels,
            Kind.INTEGERS: _integers,
            Kind.NUMBER: _number,
            Kind.MESSAGES: parse_messages,
            Kind.TOKENS: self.tokens,
            Kind.TAGS: self.tags,
        }
        self.record = (
            task.convert_row if getattr(type(task), "convert_row", Task.convert_row) is not Task.convert_row else None
        )
        self.along = [f.name for f in self.fields if f.kind in ALONG]
        self.tagged = any(f.kind is Kind.TAGS for f in self.fields)
        self.columns = [(f, self.named.get(f.name, f.name), convert[f.kind]) for f in self.fields]
        self.filled = {f.name for f in self.fields if f.required and not f.blank and f.kind in FILLED}

    @property
    def wanted(self) -> list[str]:
        """What gives a header away: the column names asked for, and the fields' own (a number may be a label)."""
        return [name for f, column, _ in self.columns for name in (f.name, column) if not name.isdigit()]

    def example(self, row: Row) -> Example:
        """One example, or `DataError` without the file (the caller knows it)."""
        if isinstance(row.value, DataError):
            raise row.value
        value = row.value
        if self.record:
            value = self.record(value | self._mapped(value) if isinstance(value, dict) else value)
        example = {f.name: self._value(value, f, column, convert) for f, column, convert in self.columns}
        counts = {name: len(example[name]) for name in self.along if example[name] is not None}
        if len(set(counts.values())) > 1:
            told = listing(f"{count} {name}" for name, count in counts.items())
            raise DataError(f"{listing(counts)} must be equally many, got {told}")
        identifier = _cell(row.value, self.named.get("id", "id"))
        if identifier is MISSING and self.numbered:
            raise DataError(self._missing(row.value, "id", self.named["id"]))
        if identifier is not MISSING and identifier not in (None, ""):
            example["id"] = str(identifier)
        return example

    def _mapped(self, value: dict[str, Any]) -> dict[str, Any]:
        """The cells that ``data.columns`` names, under the names of their fields."""
        found = {name: _cell(value, column) for name, column in self.named.items() if name != "id"}
        return {name: cell for name, cell in found.items() if cell is not MISSING}

    def _value(self, value: Any, field: Field, column: str, convert: Callable[[Any], Any]) -> Any:
        cell = _cell(value, field.name) if self.record else MISSING
        if cell is MISSING:
            cell = _cell(value, column)
        if isinstance(value, str) and field.required and len(self.required) == 1:
            cell = value
        if cell is MISSING and isinstance(value, list) and field.kind in ALONG and field.name not in self.named:
            cell = value[ALONG[field.kind]] if len(value) > -ALONG[field.kind] else MISSING
        if cell is MISSING and (field.name in self.named or field.required):
            raise DataError(self._missing(value, field.name, column))
        if cell is MISSING or cell is None:
            if field.required:
                raise DataError(f"the {field.name} is null")
            return EMPTIES.get(field.kind)
        try:
            converted = convert(cell)
        except UnicodeEncodeError as error:
            raise DataError(f"the {field.name} holds half a surrogate pair, which is no character") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"the {field.name} must be {field.kind.value}, got {str(cell)[:40]!r}") from error
        if field.name in self.filled and (not converted or (isinstance(converted, str) and converted.isspace())):
            raise DataError(f"the {field.name} is empty")
        return converted

    def _missing(self, value: Any, name: str, column: str) -> str:
        if isinstance(value, str):
            return (
                f"a plain line can't be split into {listing(self.required)}; set data.pattern or "
                "data.columns.<field>=<position>, or give a file for each ({field: file})"
            )
        alone = " One cell a row: is data.format right?" if len(value) == 1 else ""
        if isinstance(value, list):
            return (
                f"no column '{column}' for {name}: the row has {len(value)} cells without names; "
                f"set data.columns.{name}=<position from 0>.{alone}"
            )
        names = [str(there)[:40] for there in value]
        return (
            f"no column '{column}' for {name}; there are: {listing(names)}.{nearest(column, names)} Set "
            f"data.columns.{name}=<column>, or for a table without header data.header=false and positions.{alone}"
        )

    def label(self, raw: Any) -> str:
        """The name of a label as the file has it."""
        if isinstance(raw, bool) or (isinstance(raw, float) and raw.is_integer()):
            raw = int(raw)
        text = _text(raw).strip()
        if not text or not self.names or text in self.named_labels:
            return text
        if text not in self.names:
            start = " (ids counted from 1? data.label_start=1)" if text.isdigit() else ""
            raise DataError(f"label '{text[:40]}' is not in data.labels: {listing(self.names)}{start}")
        return self.names[text]

    def labels(self, raw: Any) -> list[str]:
        """The names of a row's labels, from a list or a separated string."""
        parts = raw if isinstance(raw, list) else str(raw).split(self.separator or None)
        return [self.label(part) for part in parts if str(part).strip()]

    def tokens(self, raw: Any) -> list[str]:
        """The words of a list, or of a text: divided at spaces where tags lie beside it, else as `words` does."""
        if not isinstance(raw, list):
            return _text(raw).split() if self.tagged else words(_text(raw))
        return _none_empty("token", [_text(part) for part in raw])

    def tags(self, raw: Any) -> list[str]:
        """The names of the words' labels, from a list or from a text with spaces between them."""
        return _none_empty("tag", [self.label(part) for part in (raw if isinstance(raw, list) else _text(raw).split())])


def _none_empty(what: str, texts: list[str]) -> list[str]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise DataError(f"{what} {number} of {len(texts)} is empty")
    return texts


def _cell(value: Any, column: str) -> Any:
    if isinstance(value, dict):
        if column in value:
            return value[column]
        if column.isdigit() and int(column) < len(value):
            return list(value.values())[int(column)]
        head, dot, rest = column.partition(".")
        return _cell(value[head], rest) if dot and head in value else MISSING
    if isinstance(value, list):
        if column.isdigit():
            return value[int(column)] if int(column) < len(value) else MISSING
        if value and all(isinstance(part, dict) and column in part for part in value):
            return [part[column] for part in value]
    return MISSING


def _text(cell: Any) -> str:
    if isinstance(cell, list | dict):
        raise TypeError
    text = str(cell)
    if not text.isascii():
        text.encode()
    return text


def _joined(cell: Any) -> str:
    return " ".join(map(_text, cell)) if isinstance(cell, list) else _text(cell)


def _texts(cell: Any) -> list[str]:
    texts = [_text(part) for part in cell] if isinstance(cell, list) else [_text(cell)]
    return texts if any(text.strip() for text in texts) else []


def _integers(cell: Any) -> list[int]:
    return [int(part) for part in (cell if isinstance(cell, list) else [cell])]


def _number(cell: Any) -> float:
    number = float(cell)
    if not math.isfinite(number):  # a score that is missing: no loss and no mean could be made of it
        raise ValueError
    return number


def label_names(options: Data) -> dict[str, str]:
    """``data.labels`` as id → name: a map, a list, or a file (JSON, ``id TAB name`` or a name a line)."""
    labels = options.labels
    if isinstance(labels, str):
        labels = _label_file(labels, options)
    if isinstance(labels, Mapping):
        return {str(key): str(name) for key, name in labels.items()}
    if not isinstance(labels, list | None):
        raise UserError(f"data.labels must be a map, a list or a file with one, got {str(options.labels)[:40]!r}")
    return {str(number): str(name) for number, name in enumerate(labels or [], options.label_start)}


def _label_file(name: str, options: Data) -> Any:
    path = Source.parse(name, getattr(options, "root", None)).path
    if path.suffix.lower() == ".json":
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(f"data.labels: {path} is no JSON: {error}") from error
    rows = read(Source(path), Files(format="lines", encoding=getattr(options, "encoding", "utf-8")), ())
    lines = [line for row in rows if (line := str(row.value).strip())]
    pairs = [line.split("\t", 1) for line in lines]
    return {key: name.strip() for key, name in pairs} if all(len(p) == 2 for p in pairs) else lines
