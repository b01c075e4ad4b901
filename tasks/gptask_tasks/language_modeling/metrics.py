"""How well a text is predicted, from sums over documents: nats, tokens, bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from gptask import AdditiveMetric, Prediction
from gptask.task import Example


class Cost(AdditiveMetric):
    """All nats by all tokens or bytes; a document's end costs nothing."""

    higher_is_better, range = False, (0.0, math.inf)
    per: ClassVar[str] = "tokens"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Nats, and tokens or bytes, of one document."""
        return [prediction.value["nats"], prediction.value[self.per]]

    def aggregate(self, rows: np.ndarray) -> float:
        """Ratio of the sums."""
        nats, size = rows.sum(0)
        return float(nats / size)


class BitsPerByte(Cost):
    """Of UTF-8, so that models with different tokenizers, and languages, can be compared."""

    name, signature, per = "bits_per_byte", "UTF-8 bytes of the cleaned text", "bytes"

    def aggregate(self, rows: np.ndarray) -> float:
        """Bits."""
        return super().aggregate(rows) / math.log(2)


class NatsPerToken(Cost):
    """Cross-entropy, the loss that papers plot."""

    name, signature = "nats_per_token", "the backbone's own tokens"


class Perplexity(Cost):
    """Of tokens, so only comparable where the tokenizer is the same."""

    name, signature = "perplexity", "the backbone's own tokens"

    def aggregate(self, rows: np.ndarray) -> float:
        """The exponential of the mean."""
        return math.exp(min(super().aggregate(rows), 700))
