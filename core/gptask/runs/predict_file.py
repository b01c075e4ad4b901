"""`gptask predict`: a run's predictions for a file or standard input, written as they are made.

A file for a file is written as a `PartFile`, from which the same command goes on after it was stopped; standard output
and input are streams that nobody can go back in.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Protocol

from gptask.config.schemas import BadRowPolicy, Predict
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import Columns
from gptask.data.documents import options_for_task
from gptask.data.reading import read, read_stream
from gptask.data.rows import Source, stdin
from gptask.errors import DataError, UserError, real_path, visible
from gptask.plugins.task import Task
from gptask.plugins.types import Prediction
from gptask.runs.parquet_chunks import join_chunks
from gptask.runs.part_file import PartFile
from gptask.runs.prediction_identity import options_identity, run_identity
from gptask.runs.prediction_lines import JsonLines, Line, PredictionWriter, WholeLines, input_cells
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
    """What predicts rows: a run in memory, or one that a server has.

    ``window`` is the number of rows that are predicted together, on which the last digits of their scores depend.
    """

    window: int

    def predict_each(self, inputs: Iterable[InputRow], live: bool) -> Iterator[tuple[InputRow, Prediction | DataError]]:
        """Yield each row with its prediction, in order; rows of a ``live`` source do not wait for others."""


def predict(config: Predict) -> None:
    """Write a line to ``config.output`` for each row of ``config.input``, in order, and log how many.

    Raises `UserError` where a file can't be read or written, `DataError` for a bad row (unless on_error=skip).
    """
    source = input_file(config)
    run = load_run(config.run, config.task, config.dtype, config.engine)
    log.info("%s", run.backbone.engine.summary())
    columns = Columns(
        run.task, config.data, run.task.inputs(), trained_columns=trained_columns(run.config.get("data") or {})
    )
    predictor = Predictor(run.task, run.backbone, run.head, config.data)
    predict_rows(config, source, run.task, columns, predictor, run_identity(run))


def predict_rows(
    config: Predict,
    source: Source | None,
    task: Task,
    columns: Columns,
    predictor: PredictsRows,
    identity: dict[str, Any],
) -> None:
    """Write the predictions for the rows of a file, or of standard input where ``source`` is None.

    ``identity`` is what decides the predictions beside the rows and the options of ``config``.
    """
    options, names = options_for_task(config.data, task), columns.header_names
    target = file_to_replace(config.output)
    if source is None or target is None:
        rows = read(source, options, names) if source else read_stream(stdin(), options, names)
        inputs = read_inputs(rows, columns, str(source.path) if source else "<stdin>")
        _write_stream(config, columns, predictor.predict_each(inputs, live=source is None))
        return

    def all_inputs() -> Iterator[InputRow]:
        return read_inputs(read(source, options, names), columns, str(source.path))

    part = PartFile(target, {"input": str(source)} | options_identity(config) | identity)
    _write_part(config, columns, all_inputs, predictor, part)


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


def file_to_replace(output: str) -> Path | None:
    """The file that the output becomes; None for standard output, a device and a pipe, which are written directly."""
    path = Path(output)
    path = real_path(path) if path.is_symlink() else path
    return None if output == "-" or (path.exists() and not path.is_file()) else path


@dataclasses.dataclass
class Progress:
    """Counts of the rows that are written, and a digest of their inputs."""

    rows: int = 0
    blank: int = 0
    errors: int = 0
    digest: Any = dataclasses.field(default_factory=hashlib.sha256)

    def count(self, entry: InputRow, line: Line) -> None:
        """Count a row."""
        self.rows, self.blank = self.rows + 1, self.blank + (entry.example is None)
        self.errors += line.error is not None
        self.read(entry)

    def read(self, entry: InputRow) -> None:
        """Add a row to the digest: what decides its prediction and its line, however its file is packed."""
        self.digest.update(repr((entry.row.number, entry.row.value, entry.example)).encode("utf-8", "surrogatepass"))

    def state(self) -> dict[str, Any]:
        """What a journal holds of it."""
        return {"rows": self.rows, "blank": self.blank, "errors": self.errors, "inputs": self.digest.hexdigest()}

    def log(self, name: str, ending: str = "") -> None:
        """Log how many rows were written."""
        counts = f" ({self.blank:,} blank, {self.errors:,} with an error)" if self.blank or self.errors else ""
        row_count = f"{self.rows:,} {'row' if self.rows == 1 else 'rows'}"
        log.info("%s written to %s%s%s", row_count, name, ending, counts)


def _write_part(
    config: Predict,
    columns: Columns,
    all_inputs: Callable[[], Iterator[InputRow]],
    predictor: PredictsRows,
    part: PartFile,
) -> None:
    """Write a file that appears under its name once it is complete, and goes on where an earlier start ended."""
    progress = Progress()
    try:
        with part:
            inputs, progress = _go_on(part, all_inputs)
            writer = _part_writer(part, with_errors=config.on_error is BadRowPolicy.skip)
            for entry, prediction in predictor.predict_each(inputs, live=False):
                line = _line(progress.rows + 1, entry, prediction, columns, config)
                writer.write(line)
                progress.count(entry, line)
                if progress.rows % predictor.window == 0 and (state := writer.end_window()) is not None:
                    part.end_window(progress.state() | {"writer": state})
            writer.close()
            part.flush()
            _publish(part)
    except OSError as error:
        raise UserError(f"{config.output} can't be written: {error.strerror}") from error
    finally:
        if part.kept_state:
            log.info("the first %s rows are kept in %s; the same command goes on after them",
                     f"{part.kept_state['rows']:,}", part.path)  # fmt: skip
    progress.log(config.output)


def _go_on(part: PartFile, all_inputs: Callable[[], Iterator[InputRow]]) -> tuple[Iterator[InputRow], Progress]:
    """The rows that are still to predict, and the progress before them; begins anew where the rows before differ."""
    inputs, state = all_inputs(), part.state
    if not state:
        return inputs, Progress()
    progress = Progress(state["rows"], state["blank"], state["errors"])
    for entry in islice(inputs, progress.rows):
        progress.read(entry)
    if progress.digest.hexdigest() == state["inputs"]:
        log.info("%s rows are taken over from %s", f"{progress.rows:,}", part.path)
        return inputs, progress
    log.warning("the first %s rows of the input are not those of %s, so the predictions begin anew",
                f"{progress.rows:,}", part.path)  # fmt: skip
    part.begin_anew()
    return all_inputs(), Progress()


def _part_writer(part: PartFile, with_errors: bool) -> PredictionWriter:
    """The writer for a part file, as it was at the end of the rows that are taken over."""
    writer = _file_writer(output_format(part.target.name), part.write, with_errors)
    if part.state:
        writer.restore(part.state["writer"])
    return writer


def _publish(part: PartFile) -> None:
    """Give the complete output its name; of Parquet's chunks, one file is made first."""
    if output_format(part.target.name) != PARQUET:
        part.publish()
        return
    joined = part.path.with_name(f"{part.path.name}.parquet")
    try:
        with joined.open("wb") as stream:
            join_chunks(part.path, stream)
        part.publish(joined)
    finally:
        joined.unlink(missing_ok=True)


def _write_stream(
    config: Predict, columns: Columns, predictions: Iterator[tuple[InputRow, Prediction | DataError]]
) -> None:
    """Write each line as soon as it is there."""
    progress = Progress()
    name = "standard output" if config.output == "-" else config.output
    ending = ""
    try:
        with open_writer(config.output, with_errors=config.on_error is BadRowPolicy.skip) as writer:
            for entry, prediction in predictions:
                line = _line(progress.rows + 1, entry, prediction, columns, config)
                writer.write(line)
                progress.count(entry, line)
    except BrokenPipeError:  # `gptask predict ... | head`
        ending = ", whose reader has closed it"
        if config.output == "-":  # what Python still holds of it must not fail when it is flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise UserError(f"{name} can't be written: {error.strerror}") from error
    finally:
        progress.log(name, ending)


def _line(number: int, entry: InputRow, prediction: Prediction | DataError, columns: Columns, config: Predict) -> Line:
    """The line for one row; raises `DataError` for a bad one unless on_error=skip."""
    cells = input_cells(entry, columns, config.data.columns)
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
def open_writer(output: str, with_errors: bool) -> Iterator[PredictionWriter]:
    """The writer for a file, or for standard output (``-``); what it holds back is written at the end.

    ``with_errors``: a table has a column for errors. Lines of text are written whole and at once.
    """
    if output == "-":
        utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
        yield JsonLines(_write_to_stdout, ascii_only=not utf8)
        return
    file_format = output_format(output)
    with open(output, "wb", buffering=0) as stream:
        if file_format != PARQUET:
            with closing(_file_writer(file_format, WholeLines(stream).write, with_errors)) as writer:
                yield writer
            return
        with NamedTemporaryFile(dir=real_path(output).parent, prefix=f".{Path(output).name}.") as chunks:
            try:
                with closing(_file_writer(file_format, chunks.write, with_errors)) as writer:
                    yield writer
            finally:
                chunks.flush()
                join_chunks(Path(chunks.name), stream)


def _file_writer(file_format: str, write: Callable[[bytes], Any], with_errors: bool) -> PredictionWriter:
    if file_format == JSON_LINES:
        return JsonLines(lambda text: write(text.encode()))
    last_names = ["rest", *(["error"] if with_errors else [])]
    if file_format == CSV:
        return CsvTable(lambda text: write(text.encode()), last_names)
    return ParquetTable(write, last_names)


def _write_to_stdout(text: str) -> None:
    sys.stdout.write(visible(text))  # it stays the same JSON
    sys.stdout.flush()
