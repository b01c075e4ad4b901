"""Comparable metrics: statistics per example, their aggregate, and its bootstrap interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.plugins.resampling import bootstrap, number_groups

if TYPE_CHECKING:
    from gptask.plugins.types import Example, Prediction


class Metric(ABC):
    """A measure of a set of predictions, computed from a few numbers per example.

    Numbers per example (n-gram matches, a label pair, an overlap) can be resampled for any metric, corpus BLEU and
    macro-F1 included; a single score per example cannot.
    """

    name: str
    higher_is_better: bool | None = True  # None: the metric is descriptive and ranks nothing
    range: tuple[float, float] = (0.0, 100.0)
    signature: str = ""
    final: bool = False  # True: needs `Task.annotate_predictions`, so validation skips it

    @abstractmethod
    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the numbers (K,) of one example, with the same K for every example."""

    @abstractmethod
    def aggregate(self, rows: np.ndarray) -> float:
        """Return the metric's value from the statistics (N, K) of a set of examples."""

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the values (R,) of R resamples, in which row n of ``rows`` (N, K) occurs ``counts[r, n]`` times.

        ``counts`` (R, N) holds whole numbers. The default aggregates each resample; override it where that is slow.
        """
        return np.array([self.aggregate(np.repeat(rows, times.astype(int), axis=0)) for times in counts])


class AdditiveMetric(Metric):
    """A metric that depends only on the sums of its statistics over the examples."""

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Aggregate the sums of each resample, which one matrix product computes."""
        return np.array([self.aggregate(sums[None]) for sums in counts @ rows])


class MeanMetric(Metric):
    """The mean of one score per example."""

    def __init__(self, name: str, signature: str = "", scale: float = 100.0) -> None:
        self.name, self.signature, self.scale = name, signature, scale

    def aggregate(self, rows: np.ndarray) -> float:
        """Return the mean of the single column times the scale."""
        return float(rows[:, 0].mean() * self.scale)

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return weighted means, unless a subclass overrides `aggregate`."""
        if type(self).aggregate is not MeanMetric.aggregate:
            return super().resampled(rows, counts)
        means: np.ndarray = counts @ rows[:, 0] / counts.sum(1)
        return means * self.scale


@dataclass
class Score:
    """A metric's value on a test set with its 95% interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool | None
    range: tuple[float, float]
    signature: str

    def to_dict(self) -> dict[str, Any]:
        """Return the form that metrics.json holds."""
        return {
            "value": round(self.value, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
            "n": self.n,
            "direction": {True: "higher", False: "lower", None: "none"}[self.higher_is_better],
            "range": [bound if math.isfinite(bound) else None for bound in self.range],  # JSON has no infinity
            "signature": self.signature,
        }


def score(
    metric: Metric, rows: np.ndarray, groups: np.ndarray | None = None, resamples: int = 1000, seed: int = 12345
) -> Score:
    """Aggregate statistics ``rows`` (N, K) and add a 95% percentile bootstrap interval over examples.

    Examples of one group in ``groups`` (N,) are resampled together. Source: Efron & Tibshirani, An Introduction to the
    Bootstrap (1993), section 13.3. The seed is fixed, so that the interval is a function of the predictions alone.
    """
    n = len(rows)
    counts = bootstrap(np.arange(n) if groups is None else groups, resamples, seed)
    values = np.concatenate([metric.resampled(rows, block) for block in counts])
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (math.nan, math.nan)
    return Score(
        metric.name,
        metric.aggregate(rows),
        float(low),
        float(high),
        n,
        metric.higher_is_better,
        metric.range,
        metric.signature,
    )


def score_all(
    metrics: Sequence[Metric], predictions: Sequence[Prediction], references: Sequence[Example]
) -> tuple[list[Score], list[dict[str, list[float]]]]:
    """Score every metric; return the scores and, for each example, the statistics by metric name.

    Examples with the same ``group`` are resampled together for the intervals.
    """
    scores, per_example = [], [dict[str, list[float]]() for _ in predictions]
    groups = number_groups([reference.get("group", number) for number, reference in enumerate(references)])
    for metric in metrics:
        rows = [list(map(float, metric.statistics(p, r))) for p, r in zip(predictions, references, strict=True)]
        scores.append(score(metric, np.asarray(rows), groups))
        for statistics, row in zip(per_example, rows, strict=True):
            statistics[metric.name] = row
    return scores, per_example
