"""How likely the answers are to the model, whatever it says itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gptask import AdditiveMetric, Prediction
from gptask.task import Example


@dataclass
class Counts:
    """What the model makes of the turns to be learned: nats, tokens and UTF-8 bytes."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0


@dataclass
class Judged(Counts, Prediction):
    """A prediction with the counts of its conversation."""


class Likelihood(AdditiveMetric):
    """A metric of summed nats, tokens and bytes."""

    higher_is_better, range = False, (0.0, float("inf"))

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Nats, tokens and bytes of one conversation; zero where nothing was to be learned."""
        judged = prediction if isinstance(prediction, Judged) else Judged(None)
        return [judged.nats, judged.tokens, judged.bytes]


class Perplexity(Likelihood):
    """Perplexity per token of the assistant's turns and their ends."""

    name = "perplexity"
    signature = "assistant's turns and their ends; per token of the backbone's tokenizer"

    def aggregate(self, rows: np.ndarray) -> float:
        """Exponential of the mean over tokens."""
        nats, tokens, _ = rows.sum(0)
        return float(np.exp(nats / max(tokens, 1)))


class BitsPerByte(Likelihood):
    """Bits per UTF-8 byte of the same turns, which compares models with different tokenizers."""

    name, signature = "bits_per_byte", "assistant's turns and their ends; per UTF-8 byte of the turns"

    def aggregate(self, rows: np.ndarray) -> float:
        """Ratio of the sums."""
        nats, _, size = rows.sum(0)
        return float(nats / math.log(2) / max(size, 1))
