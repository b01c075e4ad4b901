"""Correlations that can be resampled, and the mean error.

Shapes: N examples, R resampled sets.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from gptask import Example, MeanMetric, Metric, Prediction


class Correlation(Metric):
    """A correlation of predicted and true scores, in percent; 0 where one side is constant."""

    range = (-100.0, 100.0)

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the predicted and the true score."""
        return [prediction.value, reference["score"]]

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the correlation with each example counted once."""
        return float(self.resampled(rows, np.ones((1, len(rows))))[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Compute the correlations (R,) of all sets at once."""
        predicted, true = (self.scaled(column, counts) for column in rows.T)
        return 100 * pearson(predicted, true, counts)

    @abstractmethod
    def scaled(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return what is correlated (R, N) of values (N,) in R sets where example n occurs ``counts[r, n]`` times."""


class Pearson(Correlation):
    """Pearson's r."""

    name = "pearson"

    def scaled(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the values themselves."""
        return np.broadcast_to(values, counts.shape)


class Spearman(Correlation):
    """Spearman's rho."""

    name, signature = "spearman", "equal values share their mean rank"

    def scaled(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the ranks in each set."""
        _, level = np.unique(values, return_inverse=True)  # (N,) index among the different values, from the lowest
        order = np.argsort(level, kind="stable")
        starts = np.flatnonzero(np.diff(level[order], prepend=-1))
        level_counts = np.add.reduceat(counts[:, order], starts, axis=1)  # (R, different values)
        ranks = np.cumsum(level_counts, axis=1) - (level_counts - 1) / 2
        return ranks[:, level]


class AbsoluteError(MeanMetric):
    """Mean distance from the true score."""

    higher_is_better = False

    def __init__(self, low: float, high: float) -> None:
        super().__init__("mae", f"scale {low:g} to {high:g}", scale=1.0)
        self.range = (0.0, high - low)

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the distance."""
        return [abs(prediction.value - reference["score"])]


def pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the correlations (R,) of x and y (R, N), each weighted by ``counts`` (R, N)."""
    x, y = centred(x, counts), centred(y, counts)
    spread = np.sqrt((counts * x * x).sum(1) * (counts * y * y).sum(1))
    covariance = (counts * x * y).sum(1)
    return np.clip(np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0), -1, 1)


def centred(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the distances from the mean of each set; exactly 0 where all values of a set are equal."""
    occurs = counts > 0
    varies = np.where(occurs, x, -np.inf).max(1) > np.where(occurs, x, np.inf).min(1)
    mean = (counts * x).sum(1) / counts.sum(1)
    return (x - mean[:, None]) * varies[:, None]
