"""A served run as a client sees it: the fields that it reads, and the answers of the server as predictions."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any, cast

from gptask.config.schemas import Data, Documents
from gptask.data.cells import plain_cell
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import Columns
from gptask.errors import DataError, UserError
from gptask.plugins.task import Task
from gptask.plugins.types import Field, Kind, Prediction
from gptask.runs.prediction_lines import as_json
from gptask.runs.predictor import InputRow, chunks

log = logging.getLogger("gptask")
SCORED_ROWS, WRITTEN_ROWS = 32, 16  # of a request, where the run scores, and where it writes texts
REQUESTS_AT_ONCE = 2  # the server computes one while the answers to another are read
LOCATION = re.compile(r"(?:example|line)[: ]\d+: ")  # the server counts the lines of a request, the caller its rows
BUSY_CODES = ("queue_full", "timeout")
PREDICTION_PARTS = ("score", "probabilities", "samples", "extra")
Answer = tuple[Prediction, int] | Exception  # with the number of tokens that the server has cut off
Answers = SimpleQueue[Answer]
PostLines = Callable[
    [list[bytes], Answers, threading.Event], None
]  # puts an answer a line, ends where the event is set


class ServerBusy(UserError):
    """The server had no time for a line; it may have when it is asked again."""


def input_description(task: Task, data: Mapping[str, Any]) -> dict[str, Any]:
    """What `/v1/models` says of the input of a run with these options of ``data``: what a client reads files with."""
    return {
        "fields": [_described(field) for field in task.inputs()],
        "targets": [_described(field) for field in task.targets()],
        "converts_rows": type(task).convert_row is not Task.convert_row,
        "columns": trained_columns(data),
        "documents": task.documents.value,
    }


def _described(field: Field) -> dict[str, Any]:
    values = {"name": field.name, "kind": field.kind.value, "required": field.required, "blank": field.blank}
    return values | {"help": field.help}


class RemoteTask:
    """The fields of a served run's task, which is all that reading rows asks of one."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._inputs = [_field(values) for values in entry["fields"]]
        self._targets = [_field(values, target=True) for values in entry.get("targets", [])]
        self.documents = Documents(entry.get("documents", "line"))
        self.columns: dict[str, list[str]] = entry.get("columns", {})

    def fields(self) -> list[Field]:
        """The inputs and the targets."""
        return [*self._inputs, *self._targets]

    def inputs(self) -> list[Field]:
        """The fields that a prediction needs."""
        return self._inputs

    def targets(self) -> list[Field]:
        """The fields that a prediction is compared with."""
        return self._targets


class ConvertingTask(RemoteTask):
    """A task that makes its fields of rows itself; only the server has the code for it."""

    def convert_row(self, row: Any) -> Any:
        """Return the row as it is."""
        return row


def _field(values: Mapping[str, Any], target: bool = False) -> Field:
    required, blank = bool(values.get("required", True)), bool(values.get("blank", False))
    return Field(values["name"], Kind(values["kind"]), required, target, blank, help=values.get("help") or "")


class RemoteRun:
    """Predicts rows by a run that a server has; ``entry`` describes it, ``post`` sends lines to it.

    Raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for an entry of another form.
    """

    def __init__(self, entry: Mapping[str, Any], post: PostLines) -> None:
        self.converts_rows = bool(entry.get("converts_rows"))
        remote_task = ConvertingTask(entry) if self.converts_rows else RemoteTask(entry)
        self.task, self._trained_columns = cast(Task, remote_task), remote_task.columns
        self.window = WRITTEN_ROWS if entry.get("writes") else SCORED_ROWS
        self.identity = {name: value for name, value in entry.items() if name != "loaded"}  # a server may start again
        self.post = post

    def columns(self, options: Data) -> Columns:
        """What reads the inputs of the run from rows, by the options of ``data``."""
        self._columns = Columns(self.task, options, self.task.inputs(), trained_columns=self._trained_columns)
        return self._columns

    def predict_each(self, inputs: Iterable[InputRow], live: bool) -> Iterator[tuple[InputRow, Prediction | DataError]]:
        """Yield each row with its prediction, in order and as the server answers.

        Rows of a ``live`` source do not wait for others. Results are those of `Predictor.predict_each`; raises
        `UserError` where the server fails.
        """
        requests: deque[tuple[list[InputRow], list[bytes | None], Answers]] = deque()
        given_up, self._shortened = threading.Event(), 0
        try:
            for chunk in chunks(inputs, live, self.window):
                lines, answers = [self._line(entry) for entry in chunk], Answers()
                if sent := [line for line in lines if line is not None]:
                    threading.Thread(target=self.post, args=(sent, answers, given_up), daemon=True).start()
                requests.append((chunk, lines, answers))
                if live or len(requests) == REQUESTS_AT_ONCE:
                    yield from self._results(*requests.popleft())
            while requests:
                yield from self._results(*requests.popleft())
        finally:
            given_up.set()
        if self._shortened:
            log.warning("%d inputs are longer than the run reads; the server has shortened them", self._shortened)

    def _line(self, entry: InputRow) -> bytes | None:
        """A row as the server gets it; None for one that is blank or bad."""
        cells: Any = entry.example
        if self.converts_rows and cells is not None:
            cells = entry.row.value
            if isinstance(cells, dict):
                cells = {name: plain_cell(cell) for name, cell in cells.items()}
                cells |= self._columns.mapped_cells(cells)
        return None if cells is None or isinstance(cells, DataError) else as_json(cells, ascii_only=True).encode()

    def _results(
        self, chunk: list[InputRow], lines: list[bytes | None], answers: Answers
    ) -> Iterator[tuple[InputRow, Prediction | DataError]]:
        for entry, line in zip(chunk, lines, strict=True):
            if line is None:
                yield entry, entry.example if isinstance(entry.example, DataError) else Prediction(None)
                continue
            answer = answers.get()
            if isinstance(answer, DataError):
                yield entry, DataError(f"{entry.place}: {answer}")
                continue
            if isinstance(answer, Exception):
                raise answer
            prediction, tokens_cut = answer
            self._shortened += tokens_cut > 0
            yield entry, prediction


def answer_of_line(answer: dict[str, Any], server: str) -> Answer:
    """What the server answers to one line: a prediction, `DataError` where the line is at fault, another error.

    Raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for an answer of another form.
    """
    if "prediction" in answer:
        values = {name: answer[name] for name in PREDICTION_PARTS if answer.get(name) is not None}
        return Prediction(answer["prediction"], **values), int(answer.get("truncated") or 0)
    error = answer["error"] if isinstance(answer["error"], dict) else {"message": answer["error"]}
    message = LOCATION.sub("", str(error["message"]), count=1)
    if error.get("type", "invalid_request_error") == "invalid_request_error":
        return DataError(message)
    request = f" (request {error['request_id']})" if error.get("request_id") else ""
    kind = ServerBusy if error.get("code") in BUSY_CODES else UserError
    return kind(f"the server at {server} has failed: {message}{request}")
