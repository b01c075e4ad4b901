"""SQuAD's exact match and F1 (Rajpurkar et al. 2016), for answers in any script."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex
from gptask import Example, MeanMetric, Prediction, space_characters

from gptask_tasks.text import reference_texts

OTHER_SCRIPT = regex.compile(  # two letters (one, as in β-carotene, is a symbol), a character, a full-width form
    r"(?:[^\P{L}\p{Latin}\p{Common}]\p{M}*){2}|\p{Han}|[\u3000-\u303f\uff00-\uffef]"
)
PUNCTUATION = regex.compile(r"[\p{P}\p{Default_Ignorable_Code_Point}]")


def tokens(text: str) -> list[str]:
    """Split a text into what is compared: SQuAD's normalised words.

    A text with words of another script than Latin is normalised to NFKC, loses that script's punctuation as well, and
    is split into characters where it has no spaces, as MLQA's evaluation does for Chinese (Lewis et al. 2020).
    """
    text = unicodedata.normalize("NFC", text).lower()
    if OTHER_SCRIPT.search(text):
        text = space_characters(PUNCTUATION.sub("", unicodedata.normalize("NFKC", text).casefold()))
    text = "".join(character for character in text if character not in string.punctuation)
    return str(regex.sub(r"\b(a|an|the)\b", " ", text)).split()


def token_f1(answer: str, reference: str) -> float:
    """Compute the F1 of two bags of tokens; where one is empty, 1 if both are, else 0."""
    answer_tokens, reference_tokens = tokens(answer), tokens(reference)
    if not answer_tokens or not reference_tokens:
        return float(answer_tokens == reference_tokens)
    common = (Counter(answer_tokens) & Counter(reference_tokens)).total()
    return 2 * common / (len(answer_tokens) + len(reference_tokens))


class AnswerF1(MeanMetric):
    """F1 with the best reference, in percent."""

    def __init__(self) -> None:
        super().__init__("f1", "SQuAD v1.1 normalisation, characters in scripts without spaces; best reference")

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the F1 of one answer; a question without answer has the reference ''."""
        return [max(token_f1(str(prediction.value), text) for text in reference_texts(reference, "answers"))]


class AnswerExactMatch(AnswerF1):
    """Share of answers equal to a reference after normalisation, in percent."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "em"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return 1 for an answer equal to a reference, else 0."""
        answer = tokens(str(prediction.value))
        return [any(answer == tokens(text) for text in reference_texts(reference, "answers"))]
