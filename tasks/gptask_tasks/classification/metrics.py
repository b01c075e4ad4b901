"""Classification metrics as sums over examples: accuracy, F1, Matthews correlation, calibration error."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gptask import RESAMPLES_PER_BLOCK, Example, MeanMetric, Metric, Prediction


def single_label(labels: Sequence[str]) -> list[Metric]:
    """Metrics where every text has one label."""
    return [
        Accuracy("accuracy", "single label"),
        MacroF1(labels),
        MicroF1(labels),
        Matthews(labels),
        Calibration(),
    ]


def multi_label(labels: Sequence[str]) -> list[Metric]:
    """Metrics where a text has any number of labels."""
    return [
        MultiMicroF1(labels),
        MultiMacroF1(labels),
        ExactMatch("accuracy", "multi label: the whole set must match"),
        MultiCalibration(),
    ]


class Accuracy(MeanMetric):
    """Share of right labels, in percent."""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """One or zero."""
        return [prediction.value == reference["label"]]


class ExactMatch(MeanMetric):
    """Share of texts whose set of labels is right, in percent."""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """One or zero."""
        return [set(prediction.value) == set(reference["labels"])]


class Pairs(Metric):
    """A metric of the confusion matrix; statistics are the indices of true and predicted label."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = {name: number for number, name in enumerate(sorted(labels))}  # whatever order a run has them in
        self.signature = f"single label; {len(self.labels)} classes"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """True and predicted index."""
        return [self.labels[reference["label"]], self.labels[prediction.value]]

    def confusion(self, rows: np.ndarray) -> np.ndarray:
        """(K, K) counts, true label by predicted label."""
        k = len(self.labels)
        return np.bincount((rows[:, 0] * k + rows[:, 1]).astype(int), minlength=k * k).reshape(k, k)

    @abstractmethod
    def values(self, tables: np.ndarray) -> np.ndarray:
        """The metric (R,) of confusion matrices (R, K, K)."""

    def aggregate(self, rows: np.ndarray) -> float:
        """From the confusion matrix."""
        return float(self.values(self.confusion(rows)[None])[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """From the confusion matrix of each set; only pairs that occur are counted."""
        k = len(self.labels)
        cells, place = np.unique((rows[:, 0] * k + rows[:, 1]).astype(int), return_inverse=True)
        sums = counts @ np.eye(len(cells))[place]  # (R, cells)
        parts = []
        for part in np.array_split(sums, -(-len(sums) * k * k // RESAMPLES_PER_BLOCK)):
            tables = np.zeros((len(part), k * k))
            tables[:, cells] = part
            parts.append(self.values(tables.reshape(-1, k, k)))
        return np.concatenate(parts)


def f1(hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """2·TP / (2·TP + FP + FN); 0 where there is neither a true nor a predicted one."""
    return 2 * hits / np.maximum(true + said, 1)


class MacroF1(Pairs):
    """Mean F1 over the classes that occur (as scikit-learn counts them: true or predicted), in percent."""

    name = "f1_macro"

    def values(self, tables: np.ndarray) -> np.ndarray:
        """Mean over classes (R,)."""
        true, said = tables.sum(2), tables.sum(1)  # (R, K)
        scores = f1(np.diagonal(tables, axis1=1, axis2=2), true, said)
        return 100 * scores.sum(1) / (true + said > 0).sum(1)


class MicroF1(Pairs):
    """F1 over all decisions, in percent (equal to accuracy where every text has one label)."""

    name = "f1_micro"

    def values(self, tables: np.ndarray) -> np.ndarray:
        """Share on the diagonal (R,)."""
        return 100 * np.trace(tables, axis1=1, axis2=2) / tables.sum((1, 2))


class Matthews(Pairs):
    """Matthews correlation for K classes (Gorodkin 2004), in percent."""

    name, range = "mcc", (-100.0, 100.0)

    def values(self, tables: np.ndarray) -> np.ndarray:
        """Correlation (R,); 0 where one side is constant."""
        n, true, said = tables.sum((1, 2), dtype=float), tables.sum(2, dtype=float), tables.sum(1, dtype=float)
        spread = (n**2 - (said**2).sum(1)) * (n**2 - (true**2).sum(1))
        right = np.trace(tables, axis1=1, axis2=2) * n - (true * said).sum(1)
        return np.where(spread > 0, 100 * right / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


class Calibration(Metric):
    """Expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599), in percent."""

    name, higher_is_better, signature = "ece", False, "15 equal-width bins; top label"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Confidence, and whether it was right."""
        return [float(prediction.score or 0.0), prediction.value == reference["label"]]

    def aggregate(self, rows: np.ndarray) -> float:
        """Sum over bins of |mean confidence - accuracy|, weighted by size."""
        return float(self.resampled(rows, np.ones((1, len(rows))))[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """From the gaps of each set."""
        return 100 * np.abs(counts @ gaps(rows[:, :1], rows[:, 1:])).sum(1) / counts.sum(1)


def gaps(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> np.ndarray:
    """Confidence less outcome of decisions (N, D), summed by bin of confidence: (N, bins)."""
    place = np.clip((confidence * bins).astype(int), 0, bins - 1) + bins * np.arange(len(confidence))[:, None]
    total = np.bincount(place.ravel(), weights=(confidence - right).ravel(), minlength=bins * len(confidence))
    return total.reshape(-1, bins)


class Sets(Metric):
    """A metric of label sets; statistics are K zeros and ones of the true set, then K of the predicted one."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = sorted(labels)
        self.signature = f"multi label; {len(self.labels)} classes"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """2K zeros and ones."""
        return [float(n in reference["labels"]) for n in self.labels] + [
            float(n in prediction.value) for n in self.labels
        ]

    @abstractmethod
    def values(self, hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
        """The metric (R,) of true positives, true and predicted, each (R, K)."""

    def aggregate(self, rows: np.ndarray) -> float:
        """From the counts per class."""
        return float(self.resampled(rows, np.ones((1, len(rows))))[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """From the counts per class of each set."""
        true, said = np.split(rows, 2, axis=1)
        return self.values(*(counts @ part for part in (true * said, true, said)))


class MultiMicroF1(Sets):
    """F1 over all label decisions, in percent."""

    name = "f1_micro"

    def values(self, hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
        """From the counts over all classes."""
        return 100 * f1(hits.sum(1), true.sum(1), said.sum(1))


def best_threshold(probabilities: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]) -> float:
    """The probability (N, K) from which to predict so that micro-F1 against zeros and ones (N, K) is highest.

    Halfway to the next lower probability, and 0.5 where there is no true label.
    """
    said, true = np.ravel(probabilities), np.ravel(truth)
    order = np.argsort(-said, kind="stable")
    said, hits = said[order], np.cumsum(true[order])
    scores = f1(hits, true.sum(), np.arange(1, len(said) + 1))
    scores[:-1][said[:-1] == said[1:]] = 0  # equal probabilities can't be told apart
    best = int(scores.argmax())
    if not hits[-1]:
        return 0.5
    following = said[best + 1] if best + 1 < len(said) else 0.0
    return float(np.clip((said[best] + following) / 2, 1e-6, 1 - 1e-6))


class MultiMacroF1(Sets):
    """Mean F1 over all classes, in percent."""

    name = "f1_macro"

    def values(self, hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
        """Mean over classes."""
        return 100 * f1(hits, true, said).mean(1)


class MultiCalibration(Metric):
    """Expected calibration error over all label decisions, in percent."""

    name, higher_is_better, signature = "ece", False, "15 equal-width bins; every label"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """K probabilities, then K outcomes."""
        table = prediction.probabilities or {}
        return [*table.values(), *(float(name in reference["labels"]) for name in table)]

    def aggregate(self, rows: np.ndarray) -> float:
        """Over all N·K decisions."""
        return float(self.resampled(rows, np.ones((1, len(rows))))[0])

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """From the gaps of each set."""
        said, true = np.split(rows, 2, axis=1)
        return 100 * np.abs(counts @ gaps(said, true)).sum(1) / (counts.sum(1) * said.shape[1])


def per_class(
    labels: Sequence[str], gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]], multi: bool
) -> dict[str, Any]:
    """Precision, recall, F1 and support of every class; the confusion matrix where each text has one label."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    binary = MultiLabelBinarizer(classes=list(labels)).fit([])
    columns = precision_recall_fscore_support(
        binary.transform(gold), binary.transform(said), average=None, zero_division=0
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
        matrix = confusion_matrix([g[0] for g in gold], [s[0] for s in said], labels=list(labels))
        details["confusion_matrix"] = {"labels": list(labels), "rows_are_true": matrix.tolist()}
    return details
