"""The tables that `gptask predict` writes: CSV, line by line, and Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptask.runs.parquet_chunks import arrow_chunk
from gptask.runs.prediction_lines import NAMES, Line, PredictionWriter, as_json, encodable, renamed_cells

MAX_HELD = 1000  # rows that wait for the first prediction, which names the columns of a table
CHUNK = 10_000  # most rows of a Parquet file that are held in memory
FORMULA = re.compile(r"[\t\r\n]*[=+\-@]")  # what a spreadsheet computes (OWASP, CSV injection)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Table(PredictionWriter):
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

    def end_window(self) -> dict[str, Any] | None:
        """See `PredictionWriter`."""
        return None if self._held else {"labels": self.labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `PredictionWriter`."""
        self.labels = state["labels"]

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
            self._write(_csv_line([harmless(name) for name in self.columns]))
        rest = row["rest"] | {name: value for name, value in row.items() if name not in self.columns}
        cells = row | {"rest": rest or None}
        self._write(_csv_line([_csv_cell(cells.get(name)) for name in self.columns]))

    def end_window(self) -> dict[str, Any] | None:
        """See `PredictionWriter`."""
        state = super().end_window()
        return None if state is None else state | {"columns": self.columns}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `PredictionWriter`."""
        super().restore(state)
        self.columns = list(state["columns"])

    def close(self) -> None:
        """Write what is held back; an empty input gives a header."""
        super().close()
        if not self.columns:
            self._write(_csv_line(["row", "prediction", "score", *self.last_names]))


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return harmless(encodable(value))
    text = as_json(encodable(value))
    return harmless(json.loads(text)) if text.startswith('"') else "" if text == "null" else text


def harmless(cell: Any) -> Any:
    """The cell of a CSV file, a text with an apostrophe before it where a spreadsheet would run it as a formula."""
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def _csv_line(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # by this a cell with \r or \n is quoted
    return buffer.getvalue().removesuffix("\r\n") + "\n"


class ParquetTable(Table):
    """Typed columns, written as chunks, which `join_chunks` makes a Parquet file of.

    A Parquet file has one schema and can't be read before its end is written, so its rows wait in a file of chunks
    until all columns and types are known.
    """

    def __init__(self, write: Callable[[bytes], None], last_names: list[str]) -> None:
        super().__init__(last_names)
        self._write = write
        self._rows: list[dict[str, Any]] = []
        self._any_chunk = False

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and write a full chunk."""
        self._rows.append(row | {"rest": as_json(row["rest"]) if row["rest"] else None})
        if len(self._rows) == CHUNK:
            self._write_chunk()

    def end_window(self) -> dict[str, Any] | None:
        """See `PredictionWriter`."""
        if self._rows:
            self._write_chunk()
        return super().end_window()

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `PredictionWriter`."""
        super().restore(state)
        self._any_chunk = True

    def close(self) -> None:
        """Write what is held back; an empty input gives a chunk without rows."""
        super().close()
        if self._rows or not self._any_chunk:
            self._write_chunk()

    def _write_chunk(self) -> None:
        self._write(arrow_chunk(self._rows, ["row", "prediction", "score", *self.last_names]))
        self._rows, self._any_chunk = [], True
