"""How similar two sentences are in meaning, as a number: a regression task for gptask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gptask import DataError, Encoded, Example, Field, Kind, Prediction, PromptedTask, UserError, option

if TYPE_CHECKING:
    from gptask import Backbone, Head, Metric


class Loss(Enum):
    """The loss that training minimises."""

    mse = "mse"
    huber = "huber"


@dataclass
class Similarity(PromptedTask):
    """Say how similar two sentences are in meaning, as a number on a scale."""

    contract_version = "1.0"
    PROMPTS: ClassVar[dict[str, str]] = {
        "en": "Sentence 1: {first}\nSentence 2: {second}\nSimilarity:",
        "zh": "句子一：{first}\n句子二：{second}\n相似度：",
    }

    low: float = option(0.0, "score of sentences that have nothing in common")
    high: float = option(5.0, "score of sentences that mean the same")
    loss: Loss = option(Loss.mse, "mse, or huber where some scores of the data are far off")
    both_orders: bool = option(False, "read each pair in both orders and take the mean (twice the work)")

    def validate(self) -> None:
        """Refuse a scale without extent."""
        super().validate()
        if not (math.isfinite(self.high - self.low) and self.low < self.high):
            raise UserError(f"task.low={self.low:g} must lie below task.high={self.high:g}, and both be finite")

    def fields(self) -> list[Field]:
        """Return two sentences and a score."""
        return [
            Field("first", truncate=True, help="a sentence"),
            Field("second", truncate=True, help="the sentence it is compared with"),
            Field("score", Kind.NUMBER, target=True, help="how similar they are, from task.low to task.high"),
        ]

    def check(self, example: Example) -> None:
        """Refuse a score outside the scale."""
        if not self.low <= example["score"] <= self.high:
            raise DataError(
                f"the score {example['score']:g} lies outside {self.low:g} to {self.high:g}; "
                "task.low and task.high set the scale"
            )

    def render(self, example: Example) -> tuple[str, str | None]:
        """Return the prompt, and the score as the text that would follow it."""
        score = example.get("score")
        return self.format_prompt(example), None if score is None else f" {score:g}"

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> list[Encoded]:
        """Return the prompt's ids, in one order or in both, and the score as a share of the scale."""
        score = example.get("score")
        share = None if score is None else (score - self.low) / (self.high - self.low)
        swapped = example | {"first": example["second"], "second": example["first"]}
        orders = [example, swapped] if self.both_orders else [example]
        prompts = [self.truncate_prompt(order, tokenizer, max_tokens) for order in orders]
        return [Encoded(ids, label=share, truncated=tokens_cut) for ids, tokens_cut in prompts]

    def head(self, backbone: Backbone) -> Head:
        """Build a linear layer on the last real token."""
        from similarity.head import RegressionHead

        return RegressionHead(backbone, self.loss)

    def prediction(self, example: Example, outputs: Sequence[float]) -> Prediction:
        """Return the mean over the orders, on the scale."""
        share = min(max(sum(outputs) / len(outputs), 0.0), 1.0)
        return Prediction(self.low + (self.high - self.low) * share)

    def metrics(self) -> list[Metric]:
        """List rank correlation first, as is usual for this task."""
        from similarity.metrics import AbsoluteError, Pearson, Spearman

        return [Spearman(), Pearson(), AbsoluteError(self.low, self.high)]

    def sample(self) -> dict[str, Any]:
        """Return the sample: everyday sentences, written for this project."""
        folder = Path(__file__).parent / "sample"
        files = {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")}
        return files | {"license": "Apache-2.0"}
