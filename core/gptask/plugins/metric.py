"""Metrics that can be compared: statistics per example, aggregated, with a bootstrap interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.plugins.resampling import bootstrap, numbered

if TYPE_CHECKING:
    from gptask.plugins.types import Example, Prediction


class Metric(ABC):
    """A quality of a set of predictions, computed from a few numbers per example.

    Numbers per example (n-gram matches, a label pair, an overlap) can be resampled for any metric, corpus BLEU and
    macro-F1 included; a single score per example cannot.
    """

    name: str
    higher_is_better: bool | None = True  # None: it describes, and ranks nothing
    range: tuple[float, float] = (0.0, 100.0)
    signature: str = ""
    final: bool = False  # it rests on `Task.annotate_predictions`, so validation leaves it out

    @abstractmethod
    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Numbers of one example, always equally many: shape (K,)."""

    @abstractmethod
    def aggregate(self, rows: np.ndarray) -> float:
        """The metric's value from the statistics of a set of examples, shape (N, K)."""

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Values (R,) of R sets in which example n of (N, K) occurs ``counts[r, n]`` times, whole numbers.

        The default aggregates each set; override it where that is slow.
        """
        return np.array([self.aggregate(np.repeat(rows, times.astype(int), axis=0)) for times in counts])


class AdditiveMetric(Metric):
    """A metric that looks at nothing but the sums of its statistics over the examples."""

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """From the sums of each set, all made in one product."""
        return np.array([self.aggregate(sums[None]) for sums in counts @ rows])


class MeanMetric(Metric):
    """A metric that is the mean of one score per example."""

    def __init__(self, name: str, signature: str = "", scale: float = 100.0) -> None:
        self.name, self.signature, self.scale = name, signature, scale

    def aggregate(self, rows: np.ndarray) -> float:
        """Mean of the single column, times the scale."""
        return float(rows[:, 0].mean() * self.scale)

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Weighted means, unless a subclass aggregates otherwise."""
        if type(self).aggregate is not MeanMetric.aggregate:
            return super().resampled(rows, counts)
        return counts @ rows[:, 0] / counts.sum(1) * self.scale


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
        """The form kept in metrics.json."""
        return {
            "value": round(self.value, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
            "n": self.n,
            "direction": {True: "higher", False: "lower", None: "none"}[self.higher_is_better],
            "range": [end if math.isfinite(end) else None for end in self.range],  # JSON has no infinity
            "signature": self.signature,
        }


def score(
    metric: Metric, rows: np.ndarray, groups: np.ndarray | None = None, resamples: int = 1000, seed: int = 12345
) -> Score:
    """Aggregate statistics of shape (N, K) and put a 95% percentile bootstrap interval over examples on it.

    Examples of one group (N,) are resampled together. Source: Efron & Tibshirani, An Introduction to the Bootstrap
    (1993), section 13.3. The seed is fixed, so that the interval is a function of the predictions alone.
    """
    n = len(rows)
    counts = bootstrap(np.arange(n) if groups is None else groups, resamples, seed)
    values = np.concatenate([metric.resampled(rows, block) for block in counts])
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
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
    """Score every metric; return the scores and, per example, each metric's statistics.

    Examples with the same ``group`` are resampled together for the intervals.
    """
    scores, per_example = [], [dict[str, list[float]]() for _ in predictions]
    groups = numbered([reference.get("group", number) for number, reference in enumerate(references)])
    for metric in metrics:
        rows = [list(map(float, metric.statistics(p, r))) for p, r in zip(predictions, references, strict=True)]
        scores.append(score(metric, np.asarray(rows), groups))
        for kept, row in zip(per_example, rows, strict=True):
            kept[metric.name] = row
    return scores, per_example
