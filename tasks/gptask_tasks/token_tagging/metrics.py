"""Scores of spans as seqeval (Nakayama 2018) and conlleval count them, from counts per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gptask import AdditiveMetric, Example, Prediction

from gptask_tasks.token_tagging.spans import EntitySpan, bio, spans


def said(prediction: Prediction) -> list[EntitySpan]:
    """The spans of a prediction."""
    return [EntitySpan(entry["type"], entry["start"], entry["end"]) for entry in prediction.value]


def ratio(part: Any, whole: Any) -> Any:
    """Part by whole; 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def counts(prediction: Prediction, reference: Example, types: Sequence[str], plain: bool) -> np.ndarray:
    """How many spans of each of T types are right, said and true, (3, T)."""
    a, b = set(said(prediction)), set(spans(reference["tags"], plain))
    return np.array([[sum(span.type == kind for span in part) for kind in types] for part in (a & b, a, b)])


class Micro(AdditiveMetric):
    """Precision, recall or F1 over all spans, in percent."""

    def __init__(self, name: str, types: Sequence[str], plain: bool) -> None:
        self.name, self.types, self.plain = name, list(types), plain
        what = "every word" if plain else "spans by conlleval's rules, as seqeval 1.2.2"
        self.signature = f"{what}; {len(self.types)} types"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Spans that are right, said and true."""
        return counts(prediction, reference, self.types, self.plain).sum(1).tolist()

    def aggregate(self, rows: np.ndarray) -> float:
        """From the sums over examples."""
        right, found, true = rows.sum(0)
        whole = {"precision": found, "recall": true, "f1": (found + true) / 2}[self.name]
        return float(100 * ratio(right, whole))


class Macro(Micro):
    """Mean F1 over the types that occur, said or true, in percent."""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Right, said and true, T numbers each."""
        return counts(prediction, reference, self.types, self.plain).ravel().tolist()

    def aggregate(self, rows: np.ndarray) -> float:
        """From the sums over examples."""
        right, found, true = rows.sum(0).reshape(3, -1)
        return float(100 * ratio(2 * right, found + true).sum() / max((found + true > 0).sum(), 1))


class TagAccuracy(AdditiveMetric):
    """Share of words with the right tag, in percent; tags of spans are compared as BIO."""

    name = "accuracy"

    def __init__(self, plain: bool) -> None:
        self.plain = plain
        self.signature = "tags" if plain else "BIO tags"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Words that are right, and all."""
        true, found = reference["tags"], said(prediction)
        if self.plain:
            tags = [span.type for span in found]
        else:
            tags, true = bio(found, len(true)), bio(spans(true), len(true))
        return [sum(a == b for a, b in zip(tags, true, strict=False)), len(true)]

    def aggregate(self, rows: np.ndarray) -> float:
        """Ratio of the sums."""
        right, words = rows.sum(0)
        return float(100 * ratio(right, words))


def per_type(
    types: Sequence[str], plain: bool, predictions: Sequence[Prediction], examples: Sequence[Example]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of true spans of every type."""
    tables = [counts(p, e, types, plain) for p, e in zip(predictions, examples, strict=True)]
    right, found, true = np.sum(tables, axis=0)  # (T,) each
    scores = (ratio(right, found), ratio(right, true), ratio(2 * right, found + true))
    table = {}
    for number, kind in enumerate(types):
        values = zip(("precision", "recall", "f1"), scores, strict=True)
        table[kind] = {name: round(100 * float(score[number]), 2) for name, score in values}
        table[kind]["support"] = int(true[number])
    return table
