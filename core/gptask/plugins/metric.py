"""Comparable metrics: statistics per example, their aggregate, and its 95% interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.plugins.resampling import bootstrap, number_groups, percentile_interval

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
    scale: float = 100.0  # the value of a share of 1, for metrics that have `outcomes`
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

    def outcomes(self, rows: np.ndarray) -> np.ndarray | None:
        """Return zeros and ones (N,) whose mean times `scale` is the metric, None where it is no such share.

        A share has exact methods: its interval is Wilson's, and two runs are compared by McNemar's test.
        """
        return None


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

    def outcomes(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the column where it holds nothing but zeros and ones, unless a subclass overrides `aggregate`."""
        is_share = type(self).aggregate is MeanMetric.aggregate and np.isin(rows[:, 0], (0, 1)).all()
        return rows[:, 0] if is_share else None


@dataclass
class Score:
    """A metric's value on a test set with its 95% interval, or the reason why there is none."""

    name: str
    value: float
    interval: tuple[float, float] | None
    interval_method: str | None  # wilson or bootstrap
    interval_note: str | None  # why there is no interval
    n: int
    higher_is_better: bool | None
    range: tuple[float, float]
    signature: str

    def to_dict(self) -> dict[str, Any]:
        """Return the form that metrics.json holds."""
        return {
            "value": round(self.value, 4),
            "interval": [round(bound, 4) for bound in self.interval] if self.interval else None,
            "interval_method": self.interval_method,
            "interval_note": self.interval_note,
            "n": self.n,
            "direction": {True: "higher", False: "lower", None: "none"}[self.higher_is_better],
            "range": [bound if math.isfinite(bound) else None for bound in self.range],  # JSON has no infinity
            "signature": self.signature,
        }


def score(
    metric: Metric, rows: np.ndarray, groups: np.ndarray | None = None, resamples: int = 1000, seed: int = 12345
) -> Score:
    """Aggregate statistics ``rows`` (N, K) and add a 95% interval.

    A share of examples, each in a group of its own, has Wilson's interval. Any other metric has that of the bootstrap;
    the examples of one group in ``groups`` (N,) are resampled together. Where all resamples are equal, as when every
    answer is right, the bootstrap knows nothing of the spread, and there is no interval. The seed is fixed, so that
    the interval is a function of the predictions alone.
    """
    n = len(rows)
    groups = np.arange(n) if groups is None else groups
    value, outcomes = float(metric.aggregate(rows)), metric.outcomes(rows)
    interval, method, note = None, None, None
    if outcomes is not None and groups.max() + 1 == n:
        low, high = wilson(int(outcomes.sum()), n)
        interval, method = (metric.scale * low, metric.scale * high), "wilson"
    elif not math.isfinite(value):
        note = "the value is not a number"
    else:
        draws = np.concatenate([metric.resampled(rows, counts) for counts in bootstrap(groups, resamples, seed)])
        interval = percentile_interval(draws, value, metric.range)
        method = "bootstrap" if interval else None
        alike = "all examples alike" if groups.max() else "a single group of examples"
        note = None if interval else f"{alike}, n = {n}"
    return Score(metric.name, value, interval, method, note, n, metric.higher_is_better, metric.range, metric.signature)


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927); it has a width at 0 and at n hits too."""
    share, scale = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half_width = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(centre - half_width, 0.0), min(centre + half_width, 1.0)
    return (low if hits else 0.0), (high if hits < n else 1.0)


def interval_text(entry: Mapping[str, Any], places: int = 2) -> str:
    """Return the interval of a metric's entry in metrics.json as text, or the reason why it has none."""
    if entry["interval"] is None:
        return str(entry.get("interval_note") or "no interval")
    return "{:.{p}f} to {:.{p}f}".format(*entry["interval"], p=places)


def value_text(value: float | None, places: int = 2) -> str:
    """Return a metric's value as text; metrics.json has null for one that is not a finite number."""
    return "not a number" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


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
