"""A classifier on the state of each word's last token, with or without a thin bidirectional layer.

Shapes: B sequences, T positions, W words, C channels, K tags.
"""

from __future__ import annotations

from typing import Any

import torch
from gptask import IGNORED, Backbone, Batch, Head
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gptask_tasks.bilstm import BiLSTM


class TaggingHead(Head):
    """Log-probabilities of K tags for every word, from the state (C,) of the word's last token."""

    export_class = None  # transformers would classify every token, and knows no words and no token before them
    lora_top_fraction = 0.5  # the contexts were compared with this one

    def __init__(self, backbone: Backbone, tags: int, features: int | None = None) -> None:
        super().__init__(backbone)
        self.linear = nn.Linear(features or backbone.channels, tags)

    def words(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gather the states (B, W, C) of the words, those of pads included, and count the words (B,)."""
        counts_B = torch.tensor([len(ends) for ends in batch.extra["ends"]])
        ends_BW = pad_sequence([torch.tensor(ends) for ends in batch.extra["ends"]], batch_first=True)
        rows_B1 = torch.arange(len(ends_BW), device=hidden.device)[:, None]
        return hidden[rows_B1, ends_BW.to(hidden.device)].float(), counts_B

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return logits (B, W, K)."""
        states_BWC, _ = self.words(hidden, batch)
        logits_BWK: Tensor = self.linear(states_BWC)
        return logits_BWK

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over words."""
        assert batch.labels is not None  # what is learned from has labels
        logits_BKW = self.logits(hidden, batch).transpose(1, 2)
        return nn.functional.cross_entropy(logits_BKW, batch.labels, ignore_index=IGNORED)

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return log-probabilities (B, W, K)."""
        return self.logits(hidden, batch).log_softmax(-1)

    def scored_words(self, batch: Batch) -> Tensor:
        """Return the words (B, W) that are predicted in their window."""
        first_B1, stop_B1 = (torch.tensor(batch.extra[name])[:, None] for name in ("first", "stop"))
        word_W = torch.arange(max(map(len, batch.extra["ends"])))
        return (word_W >= first_B1) & (word_W < stop_B1)

    def predict(self, hidden: Tensor, batch: Batch) -> list[Any]:
        """Return K log-probabilities for each word that belongs to the window."""
        windows = zip(self.scores(hidden, batch), batch.extra["first"], batch.extra["stop"], strict=True)
        return [scores_WK[first:stop].tolist() for scores_WK, first, stop in windows]


class BidirectionalHead(TaggingHead):
    """The same on states of words that a `BiLSTM` has let see what stands to their right."""

    def __init__(self, backbone: Backbone, tags: int) -> None:
        around = BiLSTM(backbone.channels)
        super().__init__(backbone, tags, around.features)
        self.around = around

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return logits (B, W, K)."""
        logits_BWK: Tensor = self.linear(self.around(*self.words(hidden, batch)))
        return logits_BWK
