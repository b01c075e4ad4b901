"""Learning curves from metrics.csv, and from the files that a resumed run wrote before it."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np

from gptask.errors import UserError

MAX_POINTS = 300  # of a curve; a longer one is averaged piece by piece
Curve = tuple[np.ndarray, np.ndarray]  # steps (P,), values (P,)
Points = list[tuple[int, float]]  # step and value


def learning_curves(folder: Path, task: str | None = None) -> dict[str, Curve]:
    """The values logged in training and validation, by name; empty if there is no metrics.csv.

    With a ``task``, the result holds only what a run of several tasks logged for that task. Raises `UserError` for a
    damaged file.
    """
    points_by_name: dict[str, Points] = {}
    for path in _metrics_files(folder):
        columns = _read_columns(path)
        for name, points in (columns if task is None else _columns_of_task(columns, task)).items():
            first_step = points[0][0]  # a resumed run repeats the steps after its checkpoint
            earlier = [point for point in points_by_name.get(name, []) if point[0] < first_step]
            points_by_name[name] = earlier + points
    return {name: _thinned(points) for name, points in points_by_name.items()}


def _columns_of_task(columns: dict[str, Points], task: str) -> dict[str, Points]:
    """The columns ``train/<task>/...`` and ``val/<task>/...``, without the task in their names."""
    parts_by_name = {name: name.split("/") for name in columns}
    return {f"{parts[0]}/{parts[2]}": columns[name] for name, parts in parts_by_name.items() if parts[1:-1] == [task]}


def _metrics_files(folder: Path) -> list[Path]:
    """The files in the order in which they were written."""
    before_resume = folder.glob("metrics.before-resume-*.csv")
    ordered = sorted(before_resume, key=lambda path: int((re.findall(r"-(\d+)\.csv$", path.name) or ["0"])[0]))
    return [path for path in (*ordered, folder / "metrics.csv") if path.is_file()]


def _read_columns(path: Path) -> dict[str, Points]:
    """The finite points of the columns ``train/...`` and ``val/...``; columns without any are left out."""
    columns: dict[str, Points] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            whole_lines = (line for line in stream if line.endswith("\n"))  # a killed run cuts its last line off
            for row in csv.DictReader(whole_lines):
                for name, cell in row.items():
                    if name and name.startswith(("train/", "val/")) and cell:
                        columns.setdefault(name, []).append((int(row["step"]), float(cell)))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path.name} is damaged: {' '.join(str(error).split())[:120]}") from error
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in columns.items()}
    return {name: points for name, points in finite.items() if points}


def _thinned(points: Points) -> Curve:
    """The points as arrays, averaged over pieces if there are more than ``MAX_POINTS``."""
    table = np.asarray(points, dtype=float)
    if len(table) > MAX_POINTS:
        table = np.asarray([piece.mean(0) for piece in np.array_split(table, MAX_POINTS)])
    return table[:, 0], table[:, 1]
