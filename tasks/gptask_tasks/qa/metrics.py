"""SQuAD's exact match and F1 (Rajpurkar et al. 2016), and their form for Chinese."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from gptask import Example, MeanMetric, Prediction

from gptask_tasks.text import characters


def tokens(text: str, language: str) -> list[str]:
    """Split a text into what is compared: SQuAD's normalised words, or for Chinese characters and Latin words."""
    if language == "zh":
        return characters(text)
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(answer: str, reference: str, language: str) -> float:
    """Compute the F1 of two bags of tokens; where one is empty, 1 if both are, else 0."""
    answer_tokens, reference_tokens = tokens(answer, language), tokens(reference, language)
    if not answer_tokens or not reference_tokens:
        return float(answer_tokens == reference_tokens)
    common = (Counter(answer_tokens) & Counter(reference_tokens)).total()
    return 2 * common / (len(answer_tokens) + len(reference_tokens))


class AnswerF1(MeanMetric):
    """F1 with the best reference, in percent."""

    def __init__(self, language: str) -> None:
        unit = "characters, Latin words" if language == "zh" else "SQuAD v1.1 normalisation"
        super().__init__("f1", f"{unit}; best reference")
        self.language = language

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the F1 of one answer; a question without answer has the reference ''."""
        answer, references = str(prediction.value), reference["answers"] or [""]
        return [max(token_f1(answer, text, self.language) for text in references)]


class AnswerExactMatch(AnswerF1):
    """Share of answers equal to a reference after normalisation, in percent."""

    def __init__(self, language: str) -> None:
        super().__init__(language)
        self.name = "em"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return 1 for an answer equal to a reference, else 0."""
        answer, references = tokens(str(prediction.value), self.language), reference["answers"] or [""]
        return [any(answer == tokens(text, self.language) for text in references)]
