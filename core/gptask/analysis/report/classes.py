"""What a run's details say of its classes: scores of each, and which are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptask.analysis.report.report_run import ReportRun

SIZE = 40  # classes of a confusion matrix that is drawn
CONFUSIONS = 12


@dataclass
class Cell:
    """A count, and its share of the row in percent."""

    count: int
    share: float


@dataclass
class Classes:
    """Of one run. ``matrix`` has a row for each true label; it is empty where there are too many."""

    entry: ReportRun
    labels: list[str]
    matrix: list[list[Cell]]
    confusions: list[tuple[str, str, int, float]]  # true, said, count, percent of the true ones
    columns: list[str]
    scores: list[tuple[str, list[str]]]


def classes(entry: ReportRun) -> Classes | None:
    """The run's per-class scores and confusion matrix; None where its details have neither."""
    details = entry.record.result.get("details")
    details = details if isinstance(details, dict) else {}
    labels, counts = _confusion(details.get("confusion_matrix"))
    columns, scores = _scores(details.get("per_class"))
    if not labels and not scores:
        return None
    cells = [[Cell(n, 100 * n / max(sum(row), 1)) for n in row] for row in counts]
    wrong = [
        (labels[i], labels[j], cell.count, cell.share)
        for i, row in enumerate(cells)
        for j, cell in enumerate(row)
        if i != j and cell.count
    ]
    wrong.sort(key=lambda found: -found[2])
    return Classes(entry, labels, cells if len(labels) <= SIZE else [], wrong[:CONFUSIONS], columns, scores)


def _confusion(value: Any) -> tuple[list[str], list[list[int]]]:
    """Labels and counts, true by predicted, of a square table."""
    if not isinstance(value, dict):
        return [], []
    labels, rows = value.get("labels"), value.get("rows_are_true")
    if not isinstance(labels, list) or not isinstance(rows, list) or len(rows) != len(labels):
        return [], []
    if not all(isinstance(row, list) and len(row) == len(labels) and _whole(row) for row in rows):
        return [], []
    return list(map(str, labels)), rows


def _whole(row: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and n >= 0 for n in row)


def _scores(value: Any) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column names and a row of numbers for each class."""
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        return [], []
    columns = list(dict.fromkeys(str(name) for row in value.values() for name in row))
    return columns, [(str(name), [_shown(row.get(column)) for column in columns]) for name, row in value.items()]


def _shown(value: Any) -> str:
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if float(value).is_integer() and value >= 0 and value != 100 else f"{value:.2f}"
