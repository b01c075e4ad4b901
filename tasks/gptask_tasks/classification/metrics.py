"""Classification metrics as sums over examples: accuracy, F1, Matthews correlation, calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gptask import MeanMetric, Metric, Prediction
from gptask.task import Example


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
        self.labels = {name: number for number, name in enumerate(labels)}
        self.signature = f"single label; {len(self.labels)} classes"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """True and predicted index."""
        return [self.labels[reference["label"]], self.labels[prediction.value]]

    def confusion(self, rows: np.ndarray) -> np.ndarray:
        """(K, K) counts, true label by predicted label."""
        k = len(self.labels)
        return np.bincount((rows[:, 0] * k + rows[:, 1]).astype(int), minlength=k * k).reshape(k, k)


def f1(hits: np.ndarray, true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """2·TP / (2·TP + FP + FN); 0 where there is neither a true nor a predicted one."""
    return 2 * hits / np.maximum(true + said, 1)


class MacroF1(Pairs):
    """Mean F1 over the classes that occur (as scikit-learn counts them: true or predicted), in percent."""

    name = "f1_macro"

    def aggregate(self, rows: np.ndarray) -> float:
        """From the confusion matrix."""
        table = self.confusion(rows)
        true, said = table.sum(1), table.sum(0)
        return float(100 * f1(np.diag(table), true, said)[true + said > 0].mean())


class MicroF1(Pairs):
    """F1 over all decisions, in percent (equal to accuracy where every text has one label)."""

    name = "f1_micro"

    def aggregate(self, rows: np.ndarray) -> float:
        """From the confusion matrix."""
        table = self.confusion(rows)
        return float(100 * np.trace(table) / table.sum())


class Matthews(Pairs):
    """Matthews correlation for K classes (Gorodkin 2004), in percent."""

    name, range = "mcc", (-100.0, 100.0)

    def aggregate(self, rows: np.ndarray) -> float:
        """From the confusion matrix; 0 where one side is constant."""
        table = self.confusion(rows).astype(float)
        n, true, said = table.sum(), table.sum(1), table.sum(0)
        spread = (n * n - said @ said) * (n * n - true @ true)
        return float(100 * (np.trace(table) * n - true @ said) / np.sqrt(spread)) if spread > 0 else 0.0


class Calibration(Metric):
    """Expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599), in percent."""

    name, higher_is_better, signature = "ece", False, "15 equal-width bins; top label"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Confidence, and whether it was right."""
        return [float(prediction.score or 0.0), prediction.value == reference["label"]]

    def aggregate(self, rows: np.ndarray) -> float:
        """Sum over bins of |mean confidence - accuracy|, weighted by size."""
        return 100 * calibration(rows[:, 0], rows[:, 1])


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of confidences (N,) and outcomes (N,)."""
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    gap = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


class Sets(Metric):
    """A metric of label sets; statistics are K zeros and ones of the true set, then K of the predicted one."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.signature = f"multi label; {len(self.labels)} classes"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """2K zeros and ones."""
        return [float(n in reference["labels"]) for n in self.labels] + [
            float(n in prediction.value) for n in self.labels
        ]

    def counts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True positives, true, predicted, each (K,)."""
        true, said = np.split(rows, 2, axis=1)
        return (true * said).sum(0), true.sum(0), said.sum(0)


class MultiMicroF1(Sets):
    """F1 over all label decisions, in percent."""

    name = "f1_micro"

    def aggregate(self, rows: np.ndarray) -> float:
        """From the counts over all classes."""
        hits, true, said = (counts.sum() for counts in self.counts(rows))
        return float(100 * f1(hits, true, said))


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

    def aggregate(self, rows: np.ndarray) -> float:
        """From the counts per class."""
        return float(100 * f1(*self.counts(rows)).mean())


class MultiCalibration(Metric):
    """Expected calibration error over all label decisions, in percent."""

    name, higher_is_better, signature = "ece", False, "15 equal-width bins; every label"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """K probabilities, then K outcomes."""
        table = prediction.probabilities or {}
        return [*table.values(), *(float(name in reference["labels"]) for name in table)]

    def aggregate(self, rows: np.ndarray) -> float:
        """Over all N·K decisions."""
        said, true = np.split(rows, 2, axis=1)
        return 100 * calibration(said.ravel(), true.ravel())


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
