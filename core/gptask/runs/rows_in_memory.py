"""What a Python user hands over for prediction, as rows: examples, texts and tables in memory."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptask.data.cells import plain_cell
from gptask.data.columns import Columns
from gptask.data.rows import Row
from gptask.errors import DataError, UserError, listing, nearest
from gptask.plugins.types import Kind

ROWS_AT_ONCE = 1024  # of a table, made into dictionaries together


def rows_in_memory(examples: Any, columns: Columns) -> Iterator[Row]:
    """The rows of one example, of an iterable of examples, or of a table; of an iterable lazily.

    An example is a dictionary of input fields, or a text for a task that reads a single field. A table is a pandas
    DataFrame, a `datasets.Dataset`, a pyarrow Table or whatever else offers Arrow's stream (polars, DuckDB). Raises
    `UserError` at once for anything else and for a table without a field's column; an element that is no example is a
    row whose value is the `DataError`.
    """
    pandas = sys.modules.get("pandas")  # a DataFrame can't exist without it
    if (
        pandas
        and isinstance(examples, pandas.Series)
        and not {name for f in columns.fields for name in columns.accepted_names(f.name)}.isdisjoint(examples.index)
    ):
        examples = examples.to_dict()  # one row of a DataFrame
    values: Iterable[Any]
    if isinstance(examples, str | Mapping):
        values = [_single_example(examples, columns)]
    elif pandas and isinstance(examples, pandas.DataFrame):
        _check_table(examples, list(examples.columns), columns)
        values = _frame_rows(examples)
    elif hasattr(examples, "__arrow_c_stream__") and not (pandas and isinstance(examples, pandas.Series)):
        values = _arrow_rows(examples, columns)
    elif isinstance(examples, bytes | bytearray | set | frozenset | io.IOBase) or not _is_iterable(examples):
        raise UserError(f"predict() takes {_expected(columns)}; got {_described(examples)}")
    else:
        if isinstance(names := getattr(examples, "column_names", None), list):  # a Dataset
            _check_table(examples, names, columns)
        values = examples
    return (Row(number, _row_value(value, columns)) for number, value in enumerate(values, 1))


def _is_iterable(examples: Any) -> bool:
    try:
        iter(examples)
    except TypeError:
        return False
    return True


def _expected(columns: Columns) -> str:
    names = listing(repr(name) for name in columns.required)
    text = "a text, " if len(columns.required) == 1 else ""
    return f"{text}a dictionary with {names}, an iterable of these, a DataFrame, a datasets.Dataset or a pyarrow Table"


def _described(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _single_example(example: Any, columns: Columns) -> Any:
    """The one example that was given; raises `UserError` for a file's name, and for columns of a whole table."""
    if isinstance(example, str):
        if len(example) < 4096 and "\n" not in example and "\0" not in example and Path(example).is_file():
            raise UserError(
                f"predict({example!r}) would predict the file's name; read the file and give its texts, or use "
                f"gptask predict run=<run> input={example}"
            )
        return example
    for field in columns.fields:
        for name in columns.accepted_names(field.name):
            value = plain_cell(example.get(name))
            if field.kind is Kind.TEXT and isinstance(value, list):
                raise UserError(
                    f"a dictionary is one example, but its '{name}' is a list of {len(value)}; for several examples "
                    "give a list of dictionaries, a DataFrame or a datasets.Dataset"
                )
    return example


def _row_value(example: Any, columns: Columns) -> dict[str, Any] | str | DataError:
    """The cells of one example, or what is wrong with it."""
    if isinstance(example, Mapping):
        cells = {str(name): plain_cell(value) for name, value in example.items()}
        return cells if columns.convert_row else _missing_field(cells, columns) or cells
    if not isinstance(example, str):
        return DataError(f"expected {_expected(columns).partition(', an iterable')[0]}; got {_described(example)}")
    if len(columns.required) != 1:
        names = listing(repr(name) for name in columns.required)
        return DataError(f"a text alone can't be split into {names}; give a dictionary with these")
    return str(example)


def _missing_field(names: Iterable[str], columns: Columns) -> DataError | None:
    """The error for a row or table without a required field, or its column in training; None where it has all."""
    names = list(names)
    for name in columns.required:
        paths = columns.accepted_names(name)
        if not any(path in names or path.partition(".")[0] in names for path in paths):
            hint = f"rename the column that holds it.{nearest(name, names)}"
            in_prompt = f", which task.prompt names as {{{name}}}," if name in columns.prompt_columns else ""
            return DataError(f"no '{name}'{in_prompt} among {listing(names)}; {hint}", name)
    return None


def _check_table(table: Any, names: list[Any], columns: Columns) -> None:
    """Raise `UserError` for a table that lacks a field's column or has two of one name."""
    kind = type(table).__name__
    if twice := [name for name, count in Counter(map(str, names)).items() if count > 1]:
        raise UserError(f"the {kind} has several columns named {listing(map(repr, twice))}; rename them")
    if not columns.convert_row and (error := _missing_field(map(str, names), columns)):
        raise UserError(f"the {kind} has {error}")


def _frame_rows(frame: Any) -> Iterator[dict[Any, Any]]:
    """The rows of a DataFrame as dictionaries, with None for what is missing."""
    for start in range(0, len(frame), ROWS_AT_ONCE):
        part = frame.iloc[start : start + ROWS_AT_ONCE].astype(object)
        yield from part.where(part.notna(), None).to_dict("records")


def _arrow_rows(table: Any, columns: Columns) -> Iterator[Any]:
    import pyarrow as pa

    try:
        reader = pa.RecordBatchReader.from_stream(table)
    except pa.ArrowInvalid:  # a single column: pyarrow's ChunkedArray, a Series of polars
        return iter(pa.chunked_array(table).to_pylist())
    _check_table(table, reader.schema.names, columns)
    return (
        row
        for batch in reader
        for start in range(0, len(batch), ROWS_AT_ONCE)
        for row in batch.slice(start, ROWS_AT_ONCE).to_pylist()
    )
