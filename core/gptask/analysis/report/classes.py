"""The classes of a run, from the details in metrics.json: scores of each class, and which are confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptask.analysis.report.report_run import ReportRun

MAX_MATRIX_CLASSES = 40  # a larger confusion matrix is not drawn
MAX_CONFUSIONS = 12


@dataclass
class Cell:
    """A count, and its share of the row in percent."""

    count: int
    share: float


@dataclass
class ClassReport:
    """One run's classes. ``matrix`` has a row for each true label; it is empty if there are too many classes."""

    run: ReportRun
    labels: list[str]
    matrix: list[list[Cell]]
    confusions: list[tuple[str, str, int, float]]  # true, predicted, count, percent of the true class
    columns: list[str]
    scores: list[tuple[str, list[str]]]


def class_report(run: ReportRun) -> ClassReport | None:
    """The run's per-class scores and confusion matrix; None if its details have neither."""
    details = run.record.result.get("details")
    details = details if isinstance(details, dict) else {}
    labels, counts = _confusion_matrix(details.get("confusion_matrix"))
    columns, scores = _class_scores(details.get("per_class"))
    if not labels and not scores:
        return None
    cells = [[Cell(n, 100 * n / max(sum(row), 1)) for n in row] for row in counts]
    confusions = [
        (labels[i], labels[j], cell.count, cell.share)
        for i, row in enumerate(cells)
        for j, cell in enumerate(row)
        if i != j and cell.count
    ]
    confusions.sort(key=lambda confusion: -confusion[2])
    matrix = cells if len(labels) <= MAX_MATRIX_CLASSES else []
    return ClassReport(run, labels, matrix, confusions[:MAX_CONFUSIONS], columns, scores)


def _confusion_matrix(value: Any) -> tuple[list[str], list[list[int]]]:
    """Labels and counts, true by predicted; both are empty for anything but a square table of counts."""
    if not isinstance(value, dict):
        return [], []
    labels, rows = value.get("labels"), value.get("rows_are_true")
    if not isinstance(labels, list) or not isinstance(rows, list) or len(rows) != len(labels):
        return [], []
    if not all(isinstance(row, list) and len(row) == len(labels) and _all_counts(row) for row in rows):
        return [], []
    return list(map(str, labels)), rows


def _all_counts(row: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and n >= 0 for n in row)


def _class_scores(value: Any) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column names and a row of numbers for each class."""
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        return [], []
    columns = list(dict.fromkeys(str(name) for row in value.values() for name in row))
    return columns, [(str(name), [_number(row.get(column)) for column in columns]) for name, row in value.items()]


def _number(value: Any) -> str:
    """Counts without decimals, scores with two; 100 is taken for a score."""
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if float(value).is_integer() and value >= 0 and value != 100 else f"{value:.2f}"
