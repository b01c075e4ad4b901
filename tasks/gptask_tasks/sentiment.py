"""Sentiment: classification with other prompts and classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gptask import option

from gptask_tasks import sample
from gptask_tasks.classification import Classification


@dataclass
class Sentiment(Classification):
    """Tell whether a text is negative, neutral or positive, or how many stars from 1 to 5 it gives."""

    PROMPTS: ClassVar[dict[str, str]] = {"en": "Review: {text}\nSentiment:", "zh": "评论：{text}\n情感："}
    STARS: ClassVar[dict[str, dict[str, str]]] = {
        "en": {"1": "terrible", "2": "bad", "3": "okay", "4": "good", "5": "great"},
        "zh": {"1": "很差", "2": "差", "3": "一般", "4": "好", "5": "很好"},
    }
    CHINESE_POLARITIES: ClassVar[dict[str, str]] = {"negative": "负面", "neutral": "中性", "positive": "正面"}

    graded: bool = option(False, "labels are the grades 1 to 5")

    def validate(self) -> None:
        """Name the grades unless the user names labels."""
        if self.graded and not self.labels:
            self.labels = list(self.STARS["en"])
        super().validate()

    def label_word(self, label: str) -> str:
        """Return the word for a label; grades and, in Chinese, polarities have preset ones."""
        polarities = self.CHINESE_POLARITIES if self.language == "zh" else {}
        words = self.STARS.get(self.language, {}) if self.graded else polarities
        if label in words and label not in self.label_words:
            return words[label] if self.language == "zh" else f" {words[label]}"
        return super().label_word(label)

    def sample(self) -> dict[str, Any]:
        """Return the sample: reviews and comments in English, each with its polarity and its grade."""
        return sample("sentiment", columns={"label": "stars"} if self.graded else {})
