"""What `gptask predict` writes: JSON lines, CSV or Parquet, one line or row for each row of the input."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from gptask.errors import UserError

JSON_LINES, CSV, PARQUET = ".jsonl", ".csv", ".parquet"
OTHER_FORMATS = """
    .tsv .json .xlsx .xls .xlsm .ods .xml .html .yaml .yml .feather .arrow .orc .avro .pkl .pickle .npy .npz .db .sqlite
    .gz .zip .bz2 .xz .zst .7z .tar .docx .pdf .md
"""  # endings that promise a format which isn't written
NAMES = ("row", "prediction", "score", "samples", "probabilities", "extra", "rest", "error")  # of what is written
MAX_HELD = 1000  # rows that wait for the first prediction, which names the columns of a table
ROW_GROUP = 10_000  # rows of a Parquet file that are held in memory


class Line(NamedTuple):
    """One line of output: the input's row number and cells, what was predicted (`prediction_fields`), or the error."""

    number: int
    cells: Mapping[str, Any]
    fields: Mapping[str, Any]
    error: str | None


class Writer(Protocol):
    """Takes the lines one after another."""

    def write(self, line: Line) -> None:
        """Write a line, or keep it until it can be written."""


def output_format(output: str) -> str:
    """The format that the ending of a file's name asks for; JSON lines for any that names no format.

    Raises `UserError` for the ending of another format.
    """
    suffix = Path(output).suffix.lower()
    if suffix in OTHER_FORMATS.split():
        raise UserError(f"output={output}: predict writes .csv, .parquet and .jsonl, not {suffix}; choose one of these")
    return suffix if suffix in (CSV, PARQUET) else JSON_LINES


@contextmanager
def open_writer(output: str, with_errors: bool) -> Iterator[Writer]:
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


class WholeLines:
    """Writes lines to a file such that an interruption or a full disk leaves no part of one."""

    def __init__(self, stream: io.FileIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write a line."""
        data = memoryview(text.encode())
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
    """The input's cells, with ``input_`` before the names that the output needs for itself."""
    renamed = {}
    for name, value in cells.items():
        new_name = name
        while new_name in taken or (new_name != name and new_name in cells):
            new_name = f"input_{new_name}"
        renamed[new_name] = value
    return renamed


class JsonLines:
    """JSON objects, one a line; ``ascii_only`` makes them readable whatever encoding a terminal has."""

    def __init__(self, write: Callable[[str], None], ascii_only: bool = False) -> None:
        self._write, self.ascii_only = write, ascii_only

    def write(self, line: Line) -> None:
        """Write a line."""
        values = {"row": line.number, **renamed_cells(line.cells, NAMES), **line.fields}
        values |= {} if line.error is None else {"error": line.error}
        self._write(as_json(_encodable(values), self.ascii_only) + "\n")


class Table:
    """Rows of named columns: of the input, the prediction, its score, a probability for each label, and the rest."""

    def __init__(self, last_names: list[str]) -> None:
        self.last_names = last_names
        self.labels: list[str] | None = None
        self._held: list[Line] = []

    def write(self, line: Line) -> None:
        """Add a row; rows before the first prediction wait for it, since it tells the labels."""
        self._held.append(line)
        if self.labels is None and (line.fields.get("prediction") is not None or len(self._held) > MAX_HELD):
            self.labels = list(line.fields.get("probabilities", ()))
        if self.labels is not None:
            self._add_held()

    def _add_held(self) -> None:
        lines, self._held = self._held, []
        for line in lines:
            self.add(self._row(line))

    def _row(self, line: Line) -> dict[str, Any]:
        """The row's values by column, ``rest`` as a dictionary."""
        labels = self.labels or []
        rest = {name: value for name, value in line.fields.items() if name not in ("prediction", "score")}
        probabilities = dict(rest.pop("probabilities", {}))
        shares = {f"p_{label}": probabilities.pop(label, None) for label in labels}
        rest |= {"probabilities": probabilities} if probabilities else {}
        cells = renamed_cells(line.cells, [*NAMES, *shares])
        predicted = {"prediction": line.fields.get("prediction"), "score": line.fields.get("score")}
        last_values = {"rest": rest, "error": line.error}
        return {
            "row": line.number,
            **cells,
            **predicted,
            **shares,
            **{name: last_values[name] for name in self.last_names},
        }

    def add(self, row: dict[str, Any]) -> None:
        """Write a row."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is held back."""
        self.labels = self.labels or []
        self._add_held()


class CsvTable(Table):
    """UTF-8 with a header and commas; the first row's columns stay, those of later rows go into ``rest``."""

    def __init__(self, write: Callable[[str], None], last_names: list[str]) -> None:
        super().__init__(last_names)
        self._write = write
        self.columns: list[str] = []

    def add(self, row: dict[str, Any]) -> None:
        """Write a line, the header before the first one."""
        if not self.columns:
            self.columns = list(row)
            self._write(_csv_line(self.columns))
        rest = row["rest"] | {name: value for name, value in row.items() if name not in self.columns}
        cells = row | {"rest": rest or None}
        self._write(_csv_line([_csv_cell(cells.get(name)) for name in self.columns]))

    def close(self) -> None:
        """Write what is held back; an empty input gives a header."""
        super().close()
        if not self.columns:
            self._write(_csv_line(["row", "prediction", "score", *self.last_names]))


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return _encodable(value)
    text = as_json(value)
    return json.loads(text) if text.startswith('"') else "" if text == "null" else text


def _csv_line(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # by this a cell with \r or \n is quoted
    return buffer.getvalue().removesuffix("\r\n") + "\n"


class ParquetTable(Table):
    """Typed columns, in row groups of `ROW_GROUP` rows; a column of several types is JSON in texts.

    A Parquet file has one schema and can't be read before its end is written, so its row groups wait in temporary files
    until all columns and types are known.
    """

    def __init__(self, stream: io.FileIO, output: str, last_names: list[str]) -> None:
        super().__init__(last_names)
        self.stream = stream
        self.rows: list[dict[str, Any]] = []
        self.folder = TemporaryDirectory(dir=Path(output).resolve().parent, prefix=f".{Path(output).name}.")
        self.groups: list[tuple[Path, set[str]]] = []  # the file of each row group, and its columns that are JSON

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and put a full row group aside."""
        self.rows.append(row | {"rest": as_json(row["rest"]) if row["rest"] else None})
        if len(self.rows) == ROW_GROUP:
            self._put_aside()

    def close(self) -> None:
        """Write the file."""
        super().close()
        with self.folder:
            if self.rows or not self.groups:
                self._put_aside()
            self._write_groups()

    def _put_aside(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = dict.fromkeys(name for row in self.rows for name in row)
        arrays, json_names = dict[str, Any](), set[str]()
        for name in names or ["row", "prediction", "score", *self.last_names]:
            values = [_encodable(row.get(name)) for row in self.rows]
            try:
                arrays[name] = pa.array(values)
                if "struct<>" in str(arrays[name].type):
                    raise pa.ArrowInvalid("Parquet has no empty structs")
            except (pa.ArrowException, OverflowError):
                json_names.add(name)
                arrays[name] = _json_array(values)
        path = Path(self.folder.name) / f"{len(self.groups)}.parquet"
        pq.write_table(pa.table(arrays), path)
        self.groups.append((path, json_names))
        self.rows = []

    def _write_groups(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schemas = [pq.read_schema(path) for path, _ in self.groups]
        names = dict.fromkeys(name for schema in schemas for name in schema.names)
        types = {name: self._common_type(name, schemas) for name in names}
        schema = pa.schema([(name, types[name] or pa.string()) for name in names])
        with pq.ParquetWriter(self.stream, schema) as writer:
            for path, json_names in self.groups:
                table = pq.read_table(path)
                arrays = []
                for name in names:
                    column = table.column(name) if name in table.column_names else pa.nulls(len(table))
                    if types[name] is None and name not in json_names:
                        column = _json_array(column.to_pylist())
                    arrays.append(column.cast(schema.field(name).type))
                writer.write_table(pa.table(arrays, schema=schema))

    def _common_type(self, name: str, schemas: Sequence[Any]) -> Any:
        """The type of a column in all row groups, None if they can't share one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if any(name in json_names for _, json_names in self.groups):
            return None
        owners = [
            (path, schema) for (path, _), schema in zip(self.groups, schemas, strict=True) if name in schema.names
        ]
        parts = [pa.schema([schema.field(name).remove_metadata()]) for _, schema in owners]
        try:
            common = pa.unify_schemas(parts, promote_options="permissive").field(name).type
            for path, schema in owners:
                if schema.field(name).type != common:  # a whole number may be too large for float64
                    pq.read_table(path, columns=[name]).column(name).cast(common)
        except pa.ArrowException:
            return None
        return common


def _json_array(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if value is None else as_json(value) for value in values], pa.string())


def as_json(value: Any, ascii_only: bool = False) -> str:
    """JSON with dates in ISO form, decimal numbers and other kinds as text, and null for a number that isn't finite."""
    return json.dumps(_finite(value), ensure_ascii=ascii_only, default=_text_of, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def _text_of(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def _encodable(value: Any) -> Any:
    """The value; in a text, half a surrogate pair, which UTF-8 lacks, as its number."""
    if isinstance(value, list):
        return [_encodable(part) for part in value]
    if isinstance(value, dict):
        return {name: _encodable(part) for name, part in value.items()}
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
