"""Rows to examples: which cell is which field, what a label is called, and what is wrong with a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

from gptask.config.schemas import Data
from gptask.data import cells as conversion
from gptask.data import word_rows
from gptask.data.cells import is_blank_cell, plain_cell, wrong_kind
from gptask.data.column_lookup import MISSING, cell_at, column_name, columns_by_name
from gptask.data.labels import LabelReader
from gptask.data.messages import parse_messages
from gptask.data.rows import EVERY_NAME, Row, TableCells, column_list, is_index
from gptask.errors import DataError, UserError, listing, nearest
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Field, Kind

Converter = Callable[[Any], Any]  # a cell to a field's value; raises TypeError or ValueError for one of another kind

EMPTY_VALUES: dict[Kind, Any] = {Kind.TEXTS: [], Kind.LABELS: [], Kind.INTEGERS: [], Kind.MESSAGES: []}
NON_EMPTY_KINDS = (Kind.TEXT, Kind.TEXTS, Kind.LABEL, Kind.TOKENS, Kind.MESSAGES)  # LABELS may be an empty list
BLANK_IS_NULL = (Kind.INTEGERS, Kind.NUMBER)  # kinds for which an empty cell of a table is null
ALIGNED_KINDS = {Kind.TOKENS: 0, Kind.TAGS: -1}  # of equal length; the position of each in rows without names (CoNLL)
SEVERAL_COLUMNS_KINDS = (Kind.TEXTS, Kind.LABELS)  # of fields that may be read from several columns
PEEKED_ROWS = 50  # rows that show whether a table has a word a row


class Columns:
    """Turns rows into examples of one task, by ``data.columns``, ``data.labels`` and the task's fields.

    ``fields`` are the fields to read, all of the task's by default; prediction reads the inputs alone. ``split`` is
    named in messages. ``trained_columns`` has columns by field that are tried where ``data.columns`` names none and
    a row has none of the field's name.
    """

    def __init__(
        self,
        task: Task,
        options: Data,
        fields: list[Field] | None = None,
        split: str = "train",
        trained_columns: Mapping[str, list[str]] | None = None,
    ) -> None:
        task_fields = {field.name: field for field in (*task.inputs(), *task.targets())}
        self.fields = fields if fields is not None else list(task_fields.values())
        self.task_names = {field.name for field in task.fields()}
        self.aligned = [field.name for field in self.fields if field.kind in ALIGNED_KINDS]
        self.split = split
        self.split_columns = getattr(options, f"{split}_columns", {})
        self.column_of = columns_by_name(options.columns)
        for name, column in self.column_of.items():
            self._check_column(name, column, task_fields)
        self.prompt_columns = task_fields.keys() - self.task_names  # fields that only the prompt names
        targets = {field.name: column_list(self.column_of.get(field.name, field.name)) for field in task.targets()}
        self.target_columns = targets if self.prompt_columns else {}
        self._refuse_targets_in_prompt({})
        trained_columns = {name: names for name, names in (trained_columns or {}).items() if name not in self.column_of}
        self.trained_columns: Mapping[str, list[str]] = trained_columns
        self.predicts = fields is not None
        self.id_required = "id" in self.column_of and not self.predicts  # a row to be predicted needs no id
        self.group = None if self.predicts else options.group
        self.label_reader = LabelReader(options)
        self.names = self.label_reader.names  # label id → name
        self.has_tags = any(field.kind is Kind.TAGS for field in self.fields)
        self.kinds = {name: field.kind for name, field in task_fields.items()}
        converters = self._converters()
        self.columns = [(f, self.column_of.get(f.name, f.name), converters[f.kind]) for f in self.fields]
        self.required = [field.name for field in self.fields if field.required]
        self.non_empty = {f.name for f in self.fields if f.required and not f.blank and f.kind in NON_EMPTY_KINDS}
        self.sentence_column = None if "sentence" in self.task_names else self.column_of.get("sentence")
        converts_rows = getattr(type(task), "convert_row", Task.convert_row) is not Task.convert_row
        self.convert_row: Converter | None = task.convert_row if converts_rows else None

    def _check_column(self, name: str, column: str | list[str], task_fields: Mapping[str, Field]) -> None:
        """Raise `UserError` for an entry of ``data.columns`` that is no field, or has too many columns."""
        option = f"data.{self.split}_columns.{name}" if name in self.split_columns else f"data.columns.{name}"
        extra_names = {"id", "sentence"} if self.aligned else {"id"}
        known_names = self.task_names | task_fields.keys()
        if name not in known_names | extra_names:
            raise UserError(
                f"{option}: the task has no field '{name}'; it has {listing(sorted(known_names))}."
                f"{nearest(name, known_names)}"
            )
        field = task_fields.get(name)
        if isinstance(column, list) and (field is None or field.kind not in SEVERAL_COLUMNS_KINDS):
            kind = f" is {field.kind.value}, and" if field else ""
            raise UserError(
                f"{option}=[{listing(column)}]: {name}{kind} takes one column; several columns are for "
                f"references (texts) or labels. A prompt may name more: task.prompt='{{{column[0]}}} ...'"
            )

    def _refuse_targets_in_prompt(self, row: Any) -> None:
        """Raise `UserError` where the prompt names a column that holds a target, which would give the answer away.

        ``row`` tells which names the positions among the columns have.
        """
        for target, columns in self.target_columns.items():
            for name in sorted(self.prompt_columns):
                if column_name(row, str(self.column_of.get(name, name))) in [
                    column_name(row, column) for column in columns
                ]:
                    raise UserError(
                        f"task.prompt names {{{name}}}, whose column holds the {target}, which is what the model "
                        "has to predict: take it out"
                    )

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
        names = [name for field, column, _ in self.columns for name in (field.name, *column_list(column))]
        names += [name for columns in self.trained_columns.values() for name in columns]
        names = [name for name in [*names, *filter(None, [self.group])] if not is_index(name)]
        return [*names, EVERY_NAME] if self.convert_row else names

    def accepted_names(self, field: str) -> list[str]:
        """The names under which a row may have a field that ``data.columns`` does not map."""
        return [field, *self.trained_columns.get(field, [])]

    def sentences(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of one file; where it has a word a row, its sentences instead.

        The column that parts the sentences is that of ``data.columns.sentence``, or one whose name and cells show it;
        `sentence_column` is set to it.
        """
        rows = iter(rows)
        if not self.aligned:
            return rows
        aligned = [name for name, kind in self.kinds.items() if kind in ALIGNED_KINDS]  # tags that aren't read, too
        columns = {name: column_list(self.column_of.get(name, name)) for name in aligned}
        word_columns = [name for field in columns for name in (*columns[field], *self.trained_columns.get(field, []))]
        column = self.sentence_column
        if column is None:
            peeked = list(islice(rows, 1))
            if candidate := word_rows.sentence_column(peeked, self.trained_columns.get("sentence", [])):
                peeked += islice(rows, PEEKED_ROWS)
                column = candidate if word_rows.has_a_word_a_row(peeked, candidate, word_columns) else None
            rows = chain(peeked, rows)
        if column is None:
            return rows
        self.sentence_column = str(column)
        return word_rows.sentences(rows, self.sentence_column, word_columns)

    def example(self, row: Row) -> Example:
        """Turn a row into an example; the caller adds the file and line to a `DataError`."""
        if isinstance(row.value, DataError):
            raise row.value
        self._refuse_targets_in_prompt(row.value)
        cells: Any = row.value
        self._refuse_ambiguous(cells)
        if self.convert_row:
            mapped_cells: dict[str, Any] = {}
            if isinstance(cells, dict):
                cells = {name: plain_cell(cell) for name, cell in cells.items()}
                mapped_cells = self.mapped_cells(cells)
                cells |= mapped_cells
            cells = self.convert_row(cells)
            if not isinstance(cells, dict | list | str):
                raise TypeError(f"Task.convert_row() must return the cells of a row, got {cells!r}")
            if isinstance(cells, dict):
                cells = {name: mapped_cells[name] for name in self.prompt_columns & mapped_cells.keys()} | cells
        example = {}
        for field, column, convert in self.columns:
            try:
                example[field.name] = self._value(cells, field, column, convert)
            except DataError as error:
                error.field = field.name
                raise
        lengths = {name: len(example[name]) for name in self.aligned if example[name] is not None}
        if len(set(lengths.values())) > 1:
            counts = listing(f"{length} {name}" for name, length in lengths.items())
            raise DataError(f"{listing(lengths)} must have the same length, got {counts}")
        id_column = str(self.column_of.get("id", "id"))
        example_id = plain_cell(cell_at(row.value, id_column))
        if example_id is MISSING and self.id_required:
            raise DataError(self._no_column(row.value, "id", id_column))
        if example_id is not MISSING and example_id not in (None, ""):
            example["id"] = _id(example_id)
        if self.group:
            example["group"] = self._group_value(row.value, self.group)
        return example

    def _refuse_ambiguous(self, row: Any) -> None:
        """Raise `DataError` for a row with several columns that may be a field: of its name, and those of training."""
        for name, trained in self.trained_columns.items() if isinstance(row, dict) else ():
            there = [column for column in dict.fromkeys((name, *trained)) if column in row]
            if len(there) > 1 and any(field.name == name for field in self.fields):
                raise DataError(
                    f"the {name} may be in {listing(map(repr, there))}: the run has read it from {listing(trained)}. "
                    f"Set data.columns.{name}=<column>, or leave the others out"
                )

    def _group_value(self, row: Any, column: str) -> str:
        """The text in the column ``data.group``; raises `DataError` for a row without it."""
        cell = plain_cell(cell_at(row, column))
        if cell is MISSING:
            names = [str(name)[:40] for name in row] if isinstance(row, dict) else []
            there = f"there are: {listing(names)}.{nearest(column, names)}" if names else "the cells have no names"
            raise DataError(f"no column '{column}' for data.group; {there}")
        if isinstance(cell, list | dict):
            raise DataError(f"the {column} (data.group) must be one value, got {str(cell)[:40]!r}")
        if cell is None or is_blank_cell(cell):
            raise DataError(f"the {column} (data.group) is empty")
        return conversion.text(cell).strip()

    def mapped_cells(self, row: dict[str, Any]) -> dict[str, Any]:
        """The cells that ``data.columns`` or the prompt name, under the names of their fields."""
        column_of = {name: name for name in self.prompt_columns} | self.column_of
        columns = {name: [column_of.get(name, name)] for name in (*self.trained_columns, *column_of)}
        cells = {
            name: self._first_cell(row, [*own, *self.trained_columns.get(name, [])])
            for name, own in columns.items()
            if name in self.task_names | self.prompt_columns
        }
        return {name: cell for name, cell in cells.items() if cell is not MISSING}

    def _first_cell(self, row: Any, columns: Iterable[str | list[str]]) -> Any:
        """The cell of the first of these columns that the row has, or MISSING."""
        cells = (cell_at(row, c) if isinstance(c, str) else self._cell_of_columns(row, c) for c in columns)
        return next((cell for cell in cells if cell is not MISSING), MISSING)

    def _cell_of_columns(self, row: Any, columns: list[str]) -> Any:
        """The cells of several columns as one: of texts those that are not blank, of labels an object; or MISSING.

        Raises `DataError` for a row that has some of the columns, but not all.
        """
        (name,) = (name for name, value in self.column_of.items() if value is columns)
        if not all(map(is_index, columns)):
            columns = [column_name(row, column) for column in columns]
        cells = {column: plain_cell(cell_at(row, column)) for column in columns}
        absent = [column for column, cell in cells.items() if cell is MISSING]
        if absent and len(absent) < len(columns):
            raise DataError(self._no_column(row, name, absent[0]))
        if absent or self.kinds[name] is Kind.LABELS:
            return MISSING if absent else cells
        texts = [part for cell in cells.values() for part in (cell if isinstance(cell, list) else [cell])]
        return [text for text in map(plain_cell, texts) if text is not None and not is_blank_cell(text)]

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
        except (TypeError, ValueError, OverflowError) as error:
            problem = wrong_kind(field.name, field.kind, str(column), cell)
            raise DataError(f"{problem}. {word_rows.SPANS_HINT}") if field.kind is Kind.TAGS else problem from error
        if field.name in self.non_empty and (not value or is_blank_cell(value)):
            raise DataError(f"the {field.name} is empty")
        return value

    def _field_cell(self, row: Any, field: Field, column: str | list[str]) -> Any:
        """The cell of a field, or MISSING."""
        if isinstance(row, str) and field.required and len(self.required) == 1:
            return row
        cell = cell_at(row, field.name) if self.convert_row else MISSING  # a converted row names cells like the fields
        if cell is MISSING:
            cell = self._first_cell(row, [column, *self.trained_columns.get(field.name, [])])
        if cell is MISSING and isinstance(row, list) and field.kind in ALIGNED_KINDS:
            position = ALIGNED_KINDS[field.kind]
            if field.name not in self.column_of and len(row) > -position:
                return row[position]
        return cell

    def _no_column(self, row: Any, name: str, column: str) -> str:
        """The message for a row without the column of a field, with the columns it has."""
        if isinstance(row, str):
            other = "a table or JSON lines with these columns" if self.predicts else "a file for each ({field: file})"
            return (
                f"a plain line can't be split into {listing(self.required)}; set data.pattern or "
                f"data.columns.<field>=<position>, or give {other}"
            )
        in_table = isinstance(row, TableCells | list)
        hint = " The row has a single cell: is data.format or data.delimiter right?" if len(row) == 1 else ""
        hint = hint if in_table else ""
        if isinstance(row, list):
            return (
                f"no column '{column}' for {name}: the row has {len(row)} cells without names; "
                f"set data.columns.{name}=<position from 0>.{hint}"
            )
        columns = [str(key)[:40] for key in row]
        if name in self.prompt_columns:
            mend = "add the column: the model was trained with it"
            mend = mend if self.predicts else "correct the prompt ({{ }} are literal braces)"
            return (
                f"no column '{column}', which task.prompt names as {{{name}}}; there are: {listing(columns)}."
                f"{nearest(column, [*columns, *self.task_names])} Set data.columns.{name}=<column>, or {mend}.{hint}"
            )
        if name in self.aligned and word_rows.has_character_spans(row):
            hint = f" {word_rows.SPANS_HINT}"
        no_header = ", or for a table without header data.header=false and positions" if in_table else ""
        several = ", or [<column>,<column>]" if self.kinds.get(name) in SEVERAL_COLUMNS_KINDS else ""
        alone = "" if self.split == "train" else f" (data.{self.split}_columns.{name} for this split alone)"
        return (
            f"no column '{column}' for {name}; there are: {listing(columns)}.{nearest(column, columns)} Set "
            f"data.columns.{name}=<column>{several}{alone}{no_header}.{hint}"
        )


def _id(cell: Any) -> str:
    """The id of a row as a text; raises `DataError` for one that the stored examples can't hold."""
    try:
        return conversion.text(cell) if isinstance(cell, str | float | bytes) else str(cell)
    except UnicodeEncodeError as error:
        raise DataError("the id holds half a surrogate pair, which is not a character") from error
    except ValueError as error:
        raise DataError(f"the id must be a text or a finite number, got {str(cell)[:40]!r}") from error
