"""`gptask predict`: a run's predictions for a file or standard input, written as they are made."""

from __future__ import annotations

import codecs
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from gptask.config.schemas import BadRowPolicy, Predict
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import Columns
from gptask.data.documents import options_for_task
from gptask.data.reading import read, read_stream
from gptask.data.rows import Source, is_index, stdin
from gptask.errors import DataError, UserError
from gptask.plugins.task import Task
from gptask.plugins.types import Kind, Prediction
from gptask.runs.prediction_lines import JsonLines, Line, WholeLines, renamed_cells
from gptask.runs.prediction_tables import CsvTable, ParquetTable
from gptask.runs.predictions_file import prediction_fields
from gptask.runs.predictor import InputRow, Predictor, read_inputs
from gptask.runs.run import load_run

log = logging.getLogger("gptask")
JSON_LINES, CSV, PARQUET = ".jsonl", ".csv", ".parquet"
OTHER_FORMATS = """
    .tsv .json .xlsx .xls .xlsm .ods .xml .html .yaml .yml .feather .arrow .orc .avro .pkl .pickle .npy .npz .db .sqlite
    .gz .zip .bz2 .xz .zst .7z .tar .docx .pdf .md
"""  # endings that promise a format which isn't written


class PredictsRows(Protocol):
    """What predicts rows: a run in memory, or one that a server has."""

    def predict_each(self, inputs: Iterable[InputRow], live: bool) -> Iterator[tuple[InputRow, Prediction | DataError]]:
        """Yield each row with its prediction, in order; rows of a ``live`` source do not wait for others."""


def predict(config: Predict) -> None:
    """Write a line to ``config.output`` for each row of ``config.input``, in order, and log how many.

    Raises `UserError` where a file can't be read or written, `DataError` for a bad row (unless on_error=skip).
    """
    source = input_file(config)
    run = load_run(config.run, config.task, engine=config.engine)
    log.info("%s", run.backbone.engine.summary())
    columns = Columns(
        run.task, config.data, run.task.inputs(), trained_columns=trained_columns(run.config.get("data") or {})
    )
    predict_rows(config, source, run.task, columns, Predictor(run.task, run.backbone, run.head, config.data))


def predict_rows(config: Predict, source: Source | None, task: Task, columns: Columns, predictor: PredictsRows) -> None:
    """Write the predictions for the rows of a file, or of standard input where ``source`` is None."""
    options, names = options_for_task(config.data, task), columns.header_names
    rows = read(source, options, names) if source else read_stream(stdin(), options, names)
    inputs = read_inputs(rows, columns, str(source.path) if source else "<stdin>")
    _write(config, columns, predictor.predict_each(inputs, live=source is None))


def input_file(config: Predict) -> Source | None:
    """The file to read, None for standard input; raises `UserError` where input and output can't be right."""
    # Python sets these to None where the shell has closed them (>&-)
    if config.output == "-" and sys.__stdout__ is None:
        raise UserError("standard output is closed; name a file for the predictions: output=predictions.jsonl")
    if config.input == "-" and sys.__stdin__ is None:
        raise UserError("standard input is closed; name a file to read: input=<file>")
    source = None if config.input == "-" else Source.parse(config.input, config.data.root)
    target = Path(config.output)
    output_format(config.output)
    if config.output != "-" and source and target.exists() and target.samefile(source.path):
        raise UserError(f"output={target} is the input; choose another file")
    return source


def _write(config: Predict, columns: Columns, predictions: Iterator[tuple[InputRow, Prediction | DataError]]) -> None:
    rows = blank = errors = 0
    name = "standard output" if config.output == "-" else config.output
    ending = ""
    try:
        with open_writer(config.output, with_errors=config.on_error is BadRowPolicy.skip) as writer:
            for rows_before, (entry, prediction) in enumerate(predictions):
                line = _line(rows_before + 1, entry, prediction, columns, config)
                writer.write(line)
                rows, blank, errors = rows + 1, blank + (entry.example is None), errors + (line.error is not None)
    except BrokenPipeError:  # `gptask predict ... | head`
        ending = ", whose reader has closed it"
        if config.output == "-":  # what Python still holds of it must not fail when it is flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise UserError(f"{name} can't be written: {error.strerror}") from error
    finally:
        ending += f" ({blank:,} blank, {errors:,} with an error)" if blank or errors else ""
        log.info("%s %s written to %s%s", f"{rows:,}", "row" if rows == 1 else "rows", name, ending)


def _line(number: int, entry: InputRow, prediction: Prediction | DataError, columns: Columns, config: Predict) -> Line:
    """The line for one row; raises `DataError` for a bad one unless on_error=skip."""
    cells = _cells(entry, columns, config.data.columns)
    if not isinstance(prediction, DataError):
        return Line(number, cells, prediction_fields(prediction), None)
    if config.on_error is BadRowPolicy.stop:
        raise DataError(f"{prediction} (on_error=skip writes the error in place of the prediction and continues)")
    return Line(number, cells, prediction_fields(Prediction(None)), str(prediction))


def output_format(output: str) -> str:
    """The format that the ending of a file's name asks for; JSON lines for any that names no format.

    Raises `UserError` for the ending of another format.
    """
    suffix = Path(output).suffix.lower()
    if suffix in OTHER_FORMATS.split():
        raise UserError(f"output={output}: predict writes .csv, .parquet and .jsonl, not {suffix}; choose one of these")
    return suffix if suffix in (CSV, PARQUET) else JSON_LINES


@contextmanager
def open_writer(output: str, with_errors: bool) -> Iterator[JsonLines | CsvTable | ParquetTable]:
    """The writer for a file, or for standard output (``-``); what it holds back is written at the end.

    ``with_errors``: a table has a column for errors. Lines of text are written whole and at once.
    """
    if output == "-":
        utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
        yield JsonLines(_write_to_stdout, ascii_only=not utf8)
        return
    file_format = output_format(output)
    with open(output, "wb", buffering=0) as stream:
        whole_lines = WholeLines(stream)
        if file_format == JSON_LINES:
            yield JsonLines(whole_lines.write)
            return
        names = ["rest", *(["error"] if with_errors else [])]
        table = CsvTable(whole_lines.write, names) if file_format == CSV else ParquetTable(stream, output, names)
        try:
            yield table
        finally:
            table.close()


def _write_to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _cells(entry: InputRow, columns: Columns, column_names: dict[str, Any]) -> dict[str, Any]:
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
