"""Learning curves: metrics.csv, with the parts a resumed run left before it."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np

from gptask.errors import UserError

POINTS = 300  # of a curve at most; longer ones are averaged piece by piece
Curve = tuple[np.ndarray, np.ndarray]  # steps (P,), values (P,)


def curves(folder: Path, member: str | None = None) -> dict[str, Curve]:
    """What was logged while training and validating, by name; empty where there is no metrics.csv.

    Of several tasks' only what was logged of a ``member``. Raises `UserError` for a damaged file.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for path in _parts(folder):
        for name, points in _of(member, _read(path)).items():
            first = points[0][0]  # a resumed run goes over the steps behind its checkpoint again
            kept = [point for point in found.get(name, []) if point[0] < first]
            found[name] = kept + points
    return {name: _thinned(points) for name, points in found.items()}


def _of(member: str | None, found: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Without the task's name in the names of its metrics, as if it were alone."""
    if member is None:
        return found
    parts = {name: name.split("/") for name in found}
    return {f"{part[0]}/{part[2]}": found[name] for name, part in parts.items() if part[1:-1] == [member]}


def _parts(folder: Path) -> list[Path]:
    """The files in the order they were written."""
    before = folder.glob("metrics.before-resume-*.csv")
    ordered = sorted(before, key=lambda path: int((re.findall(r"-(\d+)\.csv$", path.name) or ["0"])[0]))
    return [path for path in (*ordered, folder / "metrics.csv") if path.is_file()]


def _read(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of the columns ``train/...`` and ``val/...`` that have any."""
    columns: dict[str, list[tuple[int, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                for name, cell in row.items():
                    if name and name.startswith(("train/", "val/")) and cell:
                        columns.setdefault(name, []).append((int(row["step"]), float(cell)))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path.name} is damaged: {' '.join(str(error).split())[:120]}") from error
    return {name: good for name, points in columns.items() if (good := [p for p in points if math.isfinite(p[1])])}


def _thinned(points: list[tuple[int, float]]) -> Curve:
    table = np.asarray(points, dtype=float)
    if len(table) > POINTS:
        table = np.asarray([part.mean(0) for part in np.array_split(table, POINTS)])
    return table[:, 0], table[:, 1]
