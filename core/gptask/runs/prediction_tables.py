"""The tables that `gptask predict` writes: CSV, line by line, and Parquet."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptask.runs.prediction_lines import NAMES, Line, as_json, encodable, renamed_cells

MAX_HELD = 1000  # rows that wait for the first prediction, which names the columns of a table
ROW_GROUP = 10_000  # rows of a Parquet file that are held in memory


class Table(ABC):
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

    @abstractmethod
    def add(self, row: dict[str, Any]) -> None:
        """Write a row."""

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
        return encodable(value)
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
            values = [encodable(row.get(name)) for row in self.rows]
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
