"""A run as the report sees it: per example, how good, how sure, which label, how long."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gptask.analysis.compare.records import RunRecord
from gptask.data.messages import told
from gptask.errors import UserError
from gptask.plugins.metric import Metric
from gptask.plugins.types import Kind
from gptask.runs.config_file import CORE_COLUMNS, PREDICTION_COLUMNS


@dataclass
class ReportRun:
    """One run of the page with N scored examples. ``tag`` is its letter, ``number`` its place and colour."""

    record: RunRecord
    tag: str
    number: int
    name: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of predictions.jsonl."""
        return self.record.predictions.rows

    @cached_property
    def directed(self) -> list[str]:
        """The metrics that can be better or worse, the main one first."""
        metrics = self.record.metrics
        return [name for name, metric in metrics.items() if metric.get("direction") in ("higher", "lower")]

    def statistics(self, name: str) -> np.ndarray:
        """(N, K) numbers of a metric; raises `UserError` where a line lacks them."""
        return self.record.statistics(name)

    @cached_property
    def judge(self) -> str | None:
        """The metric whose statistics tell right from wrong: a single 0 or 1 that is better high."""
        for name in self.directed:
            rows = self.statistics(name)
            higher = self.record.metrics[name]["direction"] == "higher"
            if higher and rows.shape[1] == 1 and np.isin(rows, (0, 1)).all() and rows.any():
                return name
        return None

    @cached_property
    def right(self) -> np.ndarray | None:
        """(N,) whether each prediction is right, where a metric tells."""
        return self.statistics(self.judge)[:, 0] == 1 if self.judge else None

    @cached_property
    def confidence(self) -> np.ndarray | None:
        """(N,) scores of the predictions, where each has one."""
        scores = [row.get("score") for row in self.rows]
        return None if any(score is None or not math.isfinite(score) for score in scores) else np.asarray(scores)

    @cached_property
    def lacking(self) -> str:
        """Why no metric can be computed anew: the plugin is not there, or is another. Empty where it can."""
        try:
            for name in self.directed:
                self.record.metric(name)
        except UserError as error:
            return str(error)
        return "" if self.directed else "no metric has a direction"

    @cached_property
    def alone(self) -> dict[str, np.ndarray]:
        """(N,) value of each example by itself, for the directed metrics that give one, the main one first.

        Behind the others stands what can't tell one example from another, as a correlation can't.
        """
        if self.lacking:
            return {}
        values = {name: _each(self.record.metric(name), self.statistics(name)) for name in self.directed}
        finite = [name for name, value in values.items() if np.isfinite(value).all()]
        return {name: values[name] for name in sorted(finite, key=lambda n: _silent(values[n], self.statistics(n)))}

    def sign(self, metric: str) -> int:
        """1 for a metric that is better high, -1 for one that is better low."""
        return 1 if self.record.metrics[metric]["direction"] == "higher" else -1

    @cached_property
    def worst(self) -> np.ndarray:
        """(N,) numbers of the examples, the worst first by the main metric; ties by the other metrics."""
        if not self.alone:
            return np.arange(len(self.rows))
        return np.lexsort([self.sign(name) * values for name, values in reversed(self.alone.items())])

    @cached_property
    def labels(self) -> list[list[str]] | None:
        """The true labels of each example, where the task has a target that is a label or a set of them."""
        try:
            targets = self.record.plugin.targets()
        except UserError:
            return None
        names = [field.name for field in targets if field.kind in (Kind.LABEL, Kind.LABELS)]
        return [_listed(row.get("references", {}).get(names[0])) for row in self.rows] if names else None

    @cached_property
    def characters(self) -> np.ndarray:
        """(N,) characters of the input fields."""
        return np.asarray([sum(map(_length, inputs(row).values())) for row in self.rows])


def entries(records: Sequence[RunRecord]) -> tuple[list[ReportRun], list[RunRecord]]:
    """The runs that can be shown, with a letter each, and those that can't, their ``problem`` told."""
    good: list[RunRecord] = []
    bad: list[RunRecord] = []
    for record in records:
        try:
            if not record.problem:
                _check(record)
        except UserError as error:
            record.problem = record.problem or str(error)
        (bad if record.problem else good).append(record)
    names = _names(good)
    return [ReportRun(record, _tag(k), k, names[k]) for k, record in enumerate(good)], bad


def _check(record: RunRecord) -> None:
    """Raise `UserError` for lines that are JSON but not what `train` and `evaluate` write."""
    for name in record.metrics:
        record.statistics(name)
    for number, row in enumerate(record.predictions.rows, 1):
        if not _whole(row):
            raise UserError(f"damaged: predictions.jsonl, line {number}: no prediction of a gptask run")


def _whole(row: dict[str, Any]) -> bool:
    """Whether the parts of a line that are computed with are of the right kind."""
    score, chances = row.get("score"), row.get("probabilities") or {}
    if not isinstance(row.get("references", {}), dict) or not isinstance(chances, dict):
        return False
    return isinstance(score, int | float | None) and all(isinstance(chance, int | float) for chance in chances.values())


def inputs(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of an example that a prediction is made from."""
    return {name: value for name, value in row.items() if name not in CORE_COLUMNS | PREDICTION_COLUMNS}


def _each(metric: Metric, rows: np.ndarray) -> np.ndarray:
    """(N,) a metric of one example at a time; equal statistics are computed once."""
    kinds, place = np.unique(rows, axis=0, return_inverse=True)
    with np.errstate(all="ignore"):  # what is no number is left out by the caller
        return np.asarray([metric.aggregate(row[None]) for row in kinds], dtype=float)[place.ravel()]


def _silent(values: np.ndarray, rows: np.ndarray) -> bool:
    """Whether examples with different statistics (N, K) all have the same value (N,)."""
    return bool((values == values[0]).all() and (rows != rows[0]).any())


def _tag(number: int) -> str:
    return string.ascii_uppercase[number % 26] * (1 + number // 26)


def _names(records: Sequence[RunRecord]) -> list[str]:
    """The last parts of the folders, as many as tell them apart."""
    parts = [record.folder.absolute().parts for record in records]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names if parts else []


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _length(value: Any) -> int:
    if (text := told(value)) is not None:
        return len(text)
    return sum(map(_length, value)) if isinstance(value, list) else len(str(value))
