"""Classification metrics as sums over examples: accuracy, F1, Matthews correlation, calibration error.

Shapes: N examples, K classes, R resampled sets, D decisions per example.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gptask import RESAMPLES_PER_BLOCK, Example, MeanMetric, Metric, Prediction


def single_label(labels: Sequence[str]) -> list[Metric]:
    """List the metrics for texts with one label each."""
    return [
        Accuracy("accuracy", "single label"),
        MacroF1(labels),
        MicroF1(labels),
        Matthews(labels),
        Calibration(),
    ]


def multi_label(labels: Sequence[str]) -> list[Metric]:
    """List the metrics for texts with any number of labels."""
    return [
        MultiMicroF1(labels),
        MultiMacroF1(labels),
        ExactMatch("accuracy", "multi label: the whole set must match"),
        MultiCalibration(),
    ]


class Accuracy(MeanMetric):
    """Share of right labels, in percent."""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return 1 for the right label, else 0."""
        return [prediction.value == reference["label"]]


class ExactMatch(MeanMetric):
    """Share of texts whose set of labels is right, in percent."""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return 1 for the right set, else 0."""
        return [set(prediction.value) == set(reference["labels"])]


class ConfusionMetric(Metric):
    """A metric of the confusion matrix; its statistics are the indices of the true and the predicted label."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = {
            name: index for index, name in enumerate(sorted(labels))
        }  # the same in runs of other label order
        self.signature = f"single label; {len(self.labels)} classes"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the true and the predicted index."""
        return [self.labels[reference["label"]], self.labels[prediction.value]]

    def confusion(self, rows: np.ndarray) -> np.ndarray:
        """Count rows by true label and predicted label, (K, K)."""
        k = len(self.labels)
        return np.bincount(self._cells(rows), minlength=k * k).reshape(k, k)

    def _cells(self, rows: np.ndarray) -> np.ndarray:
        """The number of each row's cell (N,) in the confusion matrix; raises ``ValueError`` for other indices."""
        k = len(self.labels)
        if rows.shape[1] != 2 or not ((rows >= 0) & (rows < k) & (rows == rows.astype(int))).all():
            raise ValueError(f"expected the numbers of two of {k} labels")
        cells: np.ndarray = (rows[:, 0] * k + rows[:, 1]).astype(int)
        return cells

    @abstractmethod
    def values(self, tables: np.ndarray) -> np.ndarray:
        """Compute the metric (R,) of confusion matrices (R, K, K)."""

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the metric from the confusion matrix."""
        return float(self.values(self.confusion(rows)[None])[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Compute the metric from the confusion matrix of each set; only cells that occur are counted."""
        k = len(self.labels)
        cells, cell_of_row = np.unique(self._cells(rows), return_inverse=True)
        cell_counts = counts @ np.eye(len(cells))[cell_of_row]  # (R, cells)
        values = []
        for block in np.array_split(cell_counts, -(-len(cell_counts) * k * k // RESAMPLES_PER_BLOCK)):
            tables = np.zeros((len(block), k * k))
            tables[:, cells] = block
            values.append(self.values(tables.reshape(-1, k, k)))
        return np.concatenate(values)


def f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute 2·TP / (2·TP + FP + FN) from counts; 0 where nothing is true or predicted."""
    scores: np.ndarray = 2 * hits / np.maximum(true + predicted, 1)
    return scores


class MacroF1(ConfusionMetric):
    """Mean F1 over the classes that occur (as scikit-learn counts them: true or predicted), in percent."""

    name = "f1_macro"

    def values(self, tables: np.ndarray) -> np.ndarray:
        """Return the means over classes (R,)."""
        true, predicted = tables.sum(2), tables.sum(1)  # (R, K)
        scores = f1(np.diagonal(tables, axis1=1, axis2=2), true, predicted)
        means: np.ndarray = 100 * scores.sum(1) / (true + predicted > 0).sum(1)
        return means


class MicroF1(ConfusionMetric):
    """F1 over all decisions, in percent (equal to accuracy where every text has one label)."""

    name = "f1_micro"

    def values(self, tables: np.ndarray) -> np.ndarray:
        """Return the shares on the diagonal (R,)."""
        shares: np.ndarray = 100 * np.trace(tables, axis1=1, axis2=2) / tables.sum((1, 2))
        return shares

    def outcomes(self, rows: np.ndarray) -> np.ndarray | None:
        """Return 1 for each right label, else 0."""
        right: np.ndarray = (rows[:, 0] == rows[:, 1]).astype(float)
        return right


class Matthews(ConfusionMetric):
    """Matthews correlation for K classes (Gorodkin 2004), in percent."""

    name, range = "mcc", (-100.0, 100.0)

    def values(self, tables: np.ndarray) -> np.ndarray:
        """Return the correlations (R,); 0 where one side is constant."""
        n, true, predicted = tables.sum((1, 2), dtype=float), tables.sum(2, dtype=float), tables.sum(1, dtype=float)
        spread = (n**2 - (predicted**2).sum(1)) * (n**2 - (true**2).sum(1))
        covariance = np.trace(tables, axis1=1, axis2=2) * n - (true * predicted).sum(1)
        return np.where(spread > 0, 100 * covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


class Calibration(Metric):
    """Expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599), in percent."""

    name, higher_is_better, signature = "ece", False, "15 equal-width bins; top label"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the confidence, and 1 if it was right, else 0."""
        return [float(prediction.score or 0.0), prediction.value == reference["label"]]

    def aggregate(self, rows: np.ndarray) -> float:
        """Sum |mean confidence - accuracy| over bins, weighted by their size."""
        return float(self.resampled(rows, np.ones((1, len(rows))))[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Compute the error of each set from its summed gaps."""
        errors: np.ndarray = 100 * np.abs(counts @ gaps(rows[:, :1], rows[:, 1:])).sum(1) / counts.sum(1)
        return errors


def gaps(confidence: np.ndarray, outcome: np.ndarray, bins: int = 15) -> np.ndarray:
    """Sum confidence - outcome of each example's decisions (N, D) by bin of confidence: (N, bins)."""
    cells = np.clip((confidence * bins).astype(int), 0, bins - 1) + bins * np.arange(len(confidence))[:, None]
    sums = np.bincount(cells.ravel(), weights=(confidence - outcome).ravel(), minlength=bins * len(confidence))
    return sums.reshape(-1, bins)


class LabelSetMetric(Metric):
    """A metric of label sets; its statistics are K zeros and ones of the true set, then K of the predicted one."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = sorted(labels)
        self.signature = f"multi label; {len(self.labels)} classes"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return 2K zeros and ones."""
        return [float(name in names) for names in (reference["labels"], prediction.value) for name in self.labels]

    @abstractmethod
    def values(self, hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Compute the metric (R,) of the counts of true positives, true and predicted labels, each (R, K)."""

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the metric from the counts per class."""
        return float(self.resampled(rows, np.ones((1, len(rows))))[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Compute the metric from the counts per class of each set."""
        true, predicted = np.split(rows, 2, axis=1)
        return self.values(counts @ (true * predicted), counts @ true, counts @ predicted)


class MultiMicroF1(LabelSetMetric):
    """F1 over all label decisions, in percent."""

    name = "f1_micro"

    def values(self, hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return the F1 scores (R,) of the counts over all classes."""
        return 100 * f1(hits.sum(1), true.sum(1), predicted.sum(1))


class MultiMacroF1(LabelSetMetric):
    """Mean F1 over all classes, in percent."""

    name = "f1_macro"

    def values(self, hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return the means over classes (R,)."""
        means: np.ndarray = 100 * f1(hits, true, predicted).mean(1)
        return means


class MultiCalibration(Metric):
    """Expected calibration error over all label decisions, in percent."""

    name, higher_is_better, signature = "ece", False, "15 equal-width bins; every label"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return K probabilities, then K outcomes."""
        probabilities = prediction.probabilities or {}
        return [*probabilities.values(), *(float(name in reference["labels"]) for name in probabilities)]

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the error over all N·K decisions."""
        return float(self.resampled(rows, np.ones((1, len(rows))))[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Compute the error of each set from its summed gaps."""
        probabilities, outcomes = np.split(rows, 2, axis=1)
        decisions = counts.sum(1) * probabilities.shape[1]
        errors: np.ndarray = 100 * np.abs(counts @ gaps(probabilities, outcomes)).sum(1) / decisions
        return errors


def best_threshold(probabilities: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]) -> float:
    """Return the probability (N, K) from which to predict so that micro-F1 against zeros and ones (N, K) is highest.

    It lies halfway to the next lower probability, and is 0.5 where no label is true.
    """
    scores, true = np.ravel(probabilities), np.ravel(truth)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(true[order])
    f1_scores = f1(hits, true.sum(), np.arange(1, len(scores) + 1))
    f1_scores[:-1][scores[:-1] == scores[1:]] = 0  # no threshold lies between equal probabilities
    best = int(f1_scores.argmax())
    if not hits[-1]:
        return 0.5
    next_lower = scores[best + 1] if best + 1 < len(scores) else 0.0
    return float(np.clip((scores[best] + next_lower) / 2, 1e-6, 1 - 1e-6))


def per_class(
    labels: Sequence[str], gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], multi: bool
) -> dict[str, Any]:
    """Return precision, recall, F1 and support of every class; the confusion matrix where each text has one label."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(classes=list(labels)).fit([])
    columns = precision_recall_fscore_support(
        binarizer.transform(gold), binarizer.transform(predicted), average=None, zero_division=0
    )
    names = ("precision", "recall", "f1", "support")
    table = {
        label: {
            name: round(float(column[k]) * (1 if name == "support" else 100), 2)
            for name, column in zip(names, columns, strict=True)
        }
        for k, label in enumerate(labels)
    }
    details: dict[str, Any] = {"per_class": table}
    if not multi:
        matrix = confusion_matrix([g[0] for g in gold], [p[0] for p in predicted], labels=list(labels))
        details["confusion_matrix"] = {"labels": list(labels), "rows_are_true": matrix.tolist()}
    return details
