"""SQuAD's exact match and F1 (Rajpurkar et al. 2016), and their form for Chinese."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from gptask import Example, MeanMetric, Prediction

from gptask_tasks.text import characters


def tokens(text: str, language: str) -> list[str]:
    """What is compared: SQuAD's normalised words, or for Chinese characters and Latin words."""
    if language == "zh":
        return characters(text)
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(said: str, true: str, language: str) -> float:
    """F1 of the bags of tokens; where one side is empty, whether both are."""
    a, b = tokens(said, language), tokens(true, language)
    common = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * common / (len(a) + len(b))


class Overlap(MeanMetric):
    """F1 with the best reference, in percent."""

    def __init__(self, language: str) -> None:
        kind = "characters, Latin words" if language == "zh" else "SQuAD v1.1 normalisation"
        super().__init__("f1", f"{kind}; best reference")
        self.language = language

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """F1 of one answer; a question without answer has the reference ''."""
        return [max(overlap(str(prediction.value), true, self.language) for true in reference["answers"] or [""])]


class Exact(Overlap):
    """Share of answers equal to a reference after normalisation, in percent."""

    def __init__(self, language: str) -> None:
        super().__init__(language)
        self.name = "em"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """One or zero."""
        said = tokens(str(prediction.value), self.language)
        return [any(said == tokens(true, self.language) for true in reference["answers"] or [""])]
