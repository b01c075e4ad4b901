"""Scores of spans as seqeval (Nakayama 2018) and conlleval count them, from counts per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gptask import AdditiveMetric, Example, Prediction

from gptask_tasks.token_tagging.spans import EntitySpan, bio, spans


def predicted_spans(prediction: Prediction) -> list[EntitySpan]:
    """Return the spans of a prediction."""
    return [EntitySpan(entry["type"], entry["start"], entry["end"]) for entry in prediction.value]


def ratio(part: Any, total: Any) -> Any:
    """Divide part by total; 0 where the total is 0."""
    return np.divide(part, total, out=np.zeros(np.shape(total)), where=np.asarray(total) > 0)


def span_counts(prediction: Prediction, reference: Example, types: Sequence[str], plain: bool) -> np.ndarray:
    """Count the right, the predicted and the true spans of each of T types, (3, T)."""
    predicted, true = set(predicted_spans(prediction)), set(spans(reference["tags"], plain))
    groups = (predicted & true, predicted, true)
    return np.array([[sum(span.type == name for span in group) for name in types] for group in groups])


class MicroScore(AdditiveMetric):
    """Precision, recall or F1 over all spans, in percent."""

    def __init__(self, name: str, types: Sequence[str], plain: bool) -> None:
        self.name, self.types, self.plain = name, list(types), plain
        unit = "every word" if plain else "spans by conlleval's rules, as seqeval 1.2.2"
        self.signature = f"{unit}; {len(self.types)} types"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Count the right, the predicted and the true spans."""
        counts: list[float] = span_counts(prediction, reference, self.types, self.plain).sum(1).tolist()
        return counts

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the score from the sums over examples."""
        right, predicted, true = rows.sum(0)
        total = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}[self.name]
        return float(100 * ratio(right, total))


class TypeMacroF1(MicroScore):
    """Mean F1 over the types that occur, predicted or true, in percent."""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Count the right, the predicted and the true spans, T numbers each."""
        return span_counts(prediction, reference, self.types, self.plain).ravel().tolist()

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the mean from the sums over examples."""
        right, predicted, true = rows.sum(0).reshape(3, -1)
        return float(100 * ratio(2 * right, predicted + true).sum() / max((predicted + true > 0).sum(), 1))


class TagAccuracy(AdditiveMetric):
    """Share of words with the right tag, in percent; tags of spans are compared as BIO."""

    name = "accuracy"

    def __init__(self, plain: bool) -> None:
        self.plain = plain
        self.signature = "tags" if plain else "BIO tags"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Count the words with the right tag, and all words."""
        true, predicted = reference["tags"], predicted_spans(prediction)
        if self.plain:
            tags = [span.type for span in predicted]
        else:
            tags, true = bio(predicted, len(true)), bio(spans(true), len(true))
        return [sum(a == b for a, b in zip(tags, true, strict=False)), len(true)]

    def aggregate(self, rows: np.ndarray) -> float:
        """Divide the sums."""
        right, words = rows.sum(0)
        return float(100 * ratio(right, words))


def per_type(
    types: Sequence[str], plain: bool, predictions: Sequence[Prediction], examples: Sequence[Example]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and the number of true spans of every type."""
    counts = [span_counts(p, e, types, plain) for p, e in zip(predictions, examples, strict=True)]
    right, predicted, true = np.sum(counts, axis=0)  # (T,) each
    scores = {
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "f1": ratio(2 * right, predicted + true),
    }
    return {
        name: {score: round(100 * float(values[index]), 2) for score, values in scores.items()}
        | {"support": int(true[index])}
        for index, name in enumerate(types)
    }
