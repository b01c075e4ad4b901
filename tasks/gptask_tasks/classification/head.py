"""A linear classifier on the last real token, started from the language model's own label words.

Shapes: B sequences, T positions, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gptask import Backbone, Batch, Head
from torch import Tensor, nn


class ClassificationHead(Head):
    """Logits (B, K) from the state (B, C) of the last real token.

    Row k of the weights starts as the output embedding of label k's word, so that before any training the head scores
    the words as the language model would. The rows' mean is subtracted (softmax does not see it, the sigmoids of
    multi-label do). There is no bias, so that the layer fits ``AutoModelForSequenceClassification``.
    """

    export_class = "AutoModelForSequenceClassification"
    last_only = True

    def __init__(self, backbone: Backbone, labels: Sequence[str], words: Sequence[str], multi_label: bool) -> None:
        super().__init__(backbone)
        self.labels, self.multi_label = list(labels), multi_label
        self.score_axis = None if multi_label else -1
        vectors_KC = backbone.word_vectors(words)
        self.linear = nn.Linear(backbone.channels, len(self.labels), bias=False, device=vectors_KC.device)
        self.linear.weight.data.copy_(vectors_KC - vectors_KC.mean(0, keepdim=True))

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return logits (B, K)."""
        rows_B = torch.arange(len(hidden), device=hidden.device)
        logits_BK: Tensor = self.linear(hidden[rows_B, batch.last()].float())
        return logits_BK

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, or the mean binary cross-entropy per label."""
        assert batch.labels is not None  # what is learned from has labels
        logits_BK = self.logits(hidden, batch)
        if self.multi_label:
            return nn.functional.binary_cross_entropy_with_logits(logits_BK, batch.labels.to(logits_BK.dtype))
        return nn.functional.cross_entropy(logits_BK, batch.labels)

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return log-probabilities (B, K), of each label by itself if a text may have several."""
        logits_BK = self.logits(hidden, batch)
        return nn.functional.logsigmoid(logits_BK) if self.multi_label else logits_BK.log_softmax(-1)

    def predict(self, hidden: Tensor, batch: Batch) -> list[Any]:
        """Return K probabilities for each of the B sequences."""
        return self.scores(hidden, batch).exp().tolist()

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the ``score`` layer and the label names of transformers' sequence classification."""
        names = dict(enumerate(self.labels))
        config = {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "problem_type": "multi_label_classification" if self.multi_label else "single_label_classification",
        }
        return {"score.weight": self.linear.weight.detach()}, config
