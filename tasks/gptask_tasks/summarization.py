"""Summarization of a document, with one or several references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from gptask import (
    WORDS_SIGNATURE,
    AdditiveMetric,
    Example,
    Field,
    GenerationOptions,
    GenerativeTask,
    Kind,
    Metric,
    Prediction,
    normalized_words,
    option,
)

from gptask_tasks import sample
from gptask_tasks.scores import Rouge
from gptask_tasks.text import reference_texts, sentences


@dataclass
class Summarization(GenerativeTask):
    """Write a short summary of a document or dialogue."""

    contract_version = "1.0"
    baseline_name = "first three sentences"
    PROMPTS: ClassVar[dict[str, str]] = {"en": "{document}\n\nSummary:", "zh": "{document}\n\n摘要："}

    generation: GenerationOptions = option(partial(GenerationOptions, stop=["\n\n"]), "how text is decoded")

    def fields(self) -> list[Field]:
        """Return a document and its summaries."""
        return [
            Field("document", truncate=True, help="the text to summarize"),
            Field("summary", Kind.TEXTS, target=True, help="a summary, or several equally good ones"),
        ]

    def target(self, example: Example) -> str | None:
        """Return the first summary, which is learned; all of them are references."""
        return example["summary"][0] if example.get("summary") else None

    def baseline_prediction(self, example: Example, train: Sequence[Example]) -> Prediction:
        """Return the document's first three sentences."""
        return Prediction("\n".join(sentences(example["document"]).split("\n")[:3]))

    def metrics(self) -> list[Metric]:
        """List ROUGE as published, and the ratio of lengths."""
        kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
        return [*(Rouge(kind, "summary") for kind in kinds), LengthRatio()]

    def sample(self) -> dict[str, Any]:
        """Return the sample: short dialogues with summaries, in English."""
        return sample("summarization")


class LengthRatio(AdditiveMetric):
    """Length of all summaries by length of their first references, in the words that ROUGE compares."""

    name, higher_is_better, range, signature = "length_ratio", None, (0.0, float("inf")), WORDS_SIGNATURE

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return both lengths."""
        texts = str(prediction.value), reference_texts(reference, "summary")[0]
        return [len(normalized_words(text)) for text in texts]

    def aggregate(self, rows: np.ndarray) -> float:
        """Divide the sums."""
        predicted, expected = rows.sum(0)
        return float(predicted / max(expected, 1))
