"""One run as the report reads it: per example its score, confidence, true labels and input length."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gptask.analysis.compare.records import RunRecord
from gptask.data.messages import format_message
from gptask.errors import UserError
from gptask.plugins.metric import Metric
from gptask.plugins.types import CORE_COLUMNS, PREDICTION_COLUMNS, Kind
from gptask.runs.validation import is_number


@dataclass
class ReportRun:
    """One run of the page with N scored examples; ``number`` is its position on the page and selects its colour."""

    record: RunRecord
    letter: str
    number: int
    name: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of predictions.jsonl."""
        return self.record.predictions.rows

    @cached_property
    def directed_metrics(self) -> list[str]:
        """The metrics that can be better or worse, the main one first."""
        metrics = self.record.metrics
        return [name for name, metric in metrics.items() if metric.get("direction") in ("higher", "lower")]

    def statistics(self, metric: str) -> np.ndarray:
        """(N, K) numbers of a metric; raises `UserError` where a line lacks them."""
        return self.record.statistics(metric)

    @cached_property
    def correctness_metric(self) -> str | None:
        """The first metric that tells right from wrong: its statistics are a single 0 or 1, and higher is better."""
        for name in self.directed_metrics:
            statistics = self.statistics(name)
            higher = self.record.metrics[name]["direction"] == "higher"
            if higher and statistics.shape[1] == 1 and np.isin(statistics, (0, 1)).all() and statistics.any():
                return name
        return None

    @cached_property
    def right(self) -> np.ndarray | None:
        """(N,) whether each prediction is right; None without a metric that tells right from wrong."""
        metric = self.correctness_metric
        return self.statistics(metric)[:, 0] == 1 if metric else None

    @cached_property
    def confidence(self) -> np.ndarray | None:
        """(N,) scores of the predictions; None if any prediction has no score."""
        scores = [row.get("score") for row in self.rows]
        return None if any(score is None or not math.isfinite(score) for score in scores) else np.asarray(scores)

    @cached_property
    def unavailable_reason(self) -> str:
        """Why metrics can't be recomputed, such as a plugin that is missing or has changed; empty if they can."""
        try:
            for name in self.directed_metrics:
                self.record.check_statistics(name)
        except UserError as error:
            return str(error)
        return "" if self.directed_metrics else "no metric has a direction"

    @cached_property
    def example_scores(self) -> dict[str, np.ndarray]:
        """(N,) value of each example by itself, for the directed metrics that have one, the main one first.

        Metrics that give examples with different statistics the same value, such as a correlation, come last.
        """
        if self.unavailable_reason:
            return {}
        values = {name: _score_each(self.record.metric(name), self.statistics(name)) for name in self.directed_metrics}
        finite = [name for name, scores in values.items() if np.isfinite(scores).all()]
        finite.sort(key=lambda name: _is_uninformative(values[name], self.statistics(name)))
        return {name: values[name] for name in finite}

    def sign(self, metric: str) -> int:
        """1 for a metric where higher is better, -1 for one where lower is better."""
        return 1 if self.record.metrics[metric]["direction"] == "higher" else -1

    @cached_property
    def worst_first(self) -> np.ndarray:
        """(N,) row numbers, the worst example first by the main metric; the other metrics break ties."""
        if not self.example_scores:
            return np.arange(len(self.rows))
        return np.lexsort([self.sign(name) * scores for name, scores in reversed(self.example_scores.items())])

    @cached_property
    def true_labels(self) -> list[list[str]] | None:
        """The true labels of each example; None if the task has no target that is a label or a set of labels."""
        try:
            targets = self.record.plugin.targets()
        except UserError:
            return None
        names = [target.name for target in targets if target.kind in (Kind.LABEL, Kind.LABELS)]
        return [_label_list(row.get("references", {}).get(names[0])) for row in self.rows] if names else None

    @cached_property
    def input_lengths(self) -> np.ndarray:
        """(N,) characters of the input fields."""
        return np.asarray([sum(map(_character_count, input_fields(row).values())) for row in self.rows])


def report_runs(records: Sequence[RunRecord]) -> tuple[list[ReportRun], list[RunRecord]]:
    """The runs that can be shown, with a letter each, and the records that can't, with their ``problem`` set."""
    sound: list[RunRecord] = []
    damaged: list[RunRecord] = []
    for record in records:
        try:
            if not record.problem:
                _check_predictions(record)
        except UserError as error:
            record.problem = record.problem or str(error)
        (damaged if record.problem else sound).append(record)
    names = _distinct_names(sound)
    return [ReportRun(record, _letter(k), k, names[k]) for k, record in enumerate(sound)], damaged


def _check_predictions(record: RunRecord) -> None:
    """Raise `UserError` for lines that are JSON but not what `train` and `evaluate` write."""
    for name in record.metrics:
        record.statistics(name)
    for number, row in enumerate(record.predictions.rows, 1):
        if not _is_prediction(row):
            raise UserError(f"damaged: predictions.jsonl, line {number} is not a prediction of a gptask run")


def _is_prediction(row: dict[str, Any]) -> bool:
    """Whether the fields of a line that the report computes with have the right types."""
    score, probabilities = row.get("score"), row.get("probabilities") or {}
    if not isinstance(row.get("references", {}), dict) or not isinstance(probabilities, dict):
        return False
    return (score is None or is_number(score)) and all(map(is_number, probabilities.values()))


def input_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of an example that the model predicts from."""
    return {name: value for name, value in row.items() if name not in CORE_COLUMNS | PREDICTION_COLUMNS}


def _score_each(metric: Metric, statistics: np.ndarray) -> np.ndarray:
    """(N,) the metric of each example alone; examples with equal statistics (N, K) are computed once."""
    distinct, indices = np.unique(statistics, axis=0, return_inverse=True)
    with np.errstate(all="ignore"):  # the caller leaves out metrics with nan
        return np.asarray([metric.aggregate(row[None]) for row in distinct], dtype=float)[indices.ravel()]


def _is_uninformative(scores: np.ndarray, statistics: np.ndarray) -> bool:
    """Whether examples with different statistics (N, K) all have the same score (N,)."""
    return bool((scores == scores[0]).all() and (statistics != statistics[0]).any())


def _letter(number: int) -> str:
    """A to Z, then AA to ZZ."""
    return string.ascii_uppercase[number % 26] * (1 + number // 26)


def _distinct_names(records: Sequence[RunRecord]) -> list[str]:
    """The last parts of each run's folder, as many as are needed to tell the runs apart."""
    paths = [record.folder.absolute().parts for record in records]
    names: list[str] = []
    for count in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _label_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(label) for label in value] if isinstance(value, list) else [str(value)]


def _character_count(value: Any) -> int:
    if (text := format_message(value)) is not None:
        return len(text)
    return sum(map(_character_count, value)) if isinstance(value, list) else len(str(value))
