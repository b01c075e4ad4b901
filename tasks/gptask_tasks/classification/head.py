"""A linear classifier on the last real token, started from the language model's own label words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gptask import Backbone, Batch, Head
from torch import Tensor, nn


class ClassificationHead(Head):
    """Logits (B, K) from the state (B, C) of the last real token.

    Row k starts as the output embedding of label k's word, so that before any training it scores the words as the
    language model would; the rows' mean is taken off (softmax does not see it, the sigmoids of multi-label do).
    No bias, so that the layer fits ``AutoModelForSequenceClassification``.
    """

    export_class = "AutoModelForSequenceClassification"
    last_only = True

    def __init__(self, backbone: Backbone, labels: Sequence[str], words: Sequence[str], multi_label: bool) -> None:
        super().__init__()
        self.labels, self.multi_label = list(labels), multi_label
        vectors = backbone.word_vectors(words)
        self.linear = nn.Linear(backbone.channels, len(self.labels), bias=False, device=vectors.device)
        self.linear.weight.data.copy_(vectors - vectors.mean(0, keepdim=True))

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, K) scores."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.linear(hidden[rows, batch.last()].float())

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, or binary cross-entropy per label."""
        logits = self.logits(hidden, batch)
        if self.multi_label:
            return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype))  # type: ignore[union-attr]
        return nn.functional.cross_entropy(logits, batch.labels)  # type: ignore[arg-type]

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Probabilities, K for each of the B sequences."""
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths, self.needed_positions(batch))
        logits = self.logits(hidden, batch)
        return (logits.sigmoid() if self.multi_label else logits.softmax(-1)).tolist()

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The ``score`` layer and the label names of transformers' sequence classification."""
        names = dict(enumerate(self.labels))
        config = {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
            "problem_type": "multi_label_classification" if self.multi_label else "single_label_classification",
        }
        return {"score.weight": self.linear.weight.detach()}, config
