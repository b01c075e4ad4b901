"""A classifier on the state of each word's last token, with or without a thin layer that reads both ways."""

from __future__ import annotations

from typing import Any

import torch
from gptask import IGNORED, Backbone, Batch, Head
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gptask_tasks.both_ways import BiLSTM


class TaggingHead(Head):
    """Log-probabilities of K tags for every word, from the state (C,) of the token that closes the word."""

    export_class = None  # transformers would read every token, and know nothing of words and what stands before them
    lora_top_fraction = 0.5  # what the contexts were compared with

    def __init__(self, features: int, tags: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, tags)

    def words(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """States (B, W, C) of the words, gathered once, and how many (B,) there are; those of pads are not real."""
        counts = torch.tensor([len(ends) for ends in batch.extra["ends"]])
        ends = pad_sequence([torch.tensor(ends) for ends in batch.extra["ends"]], batch_first=True)
        rows = torch.arange(len(ends), device=hidden.device)[:, None]
        return hidden[rows, ends.to(hidden.device)].float(), counts

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, W, K) scores."""
        return self.linear(self.words(hidden, batch)[0])

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over words."""
        logits = self.logits(hidden, batch)
        return nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=IGNORED)  # type: ignore[arg-type]

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Log-probabilities, K for each word that is the window's own."""
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths)
        scores = self.logits(hidden, batch).log_softmax(-1)
        own = zip(scores, batch.extra["first"], batch.extra["stop"], strict=True)
        return [row[first:stop].tolist() for row, first, stop in own]


class BidirectionalHead(TaggingHead):
    """The same on states that know what stands to their right too (`BiLSTM`, word by word)."""

    def __init__(self, channels: int, tags: int) -> None:
        around = BiLSTM(channels)
        super().__init__(around.features, tags)
        self.around = around

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, W, K) scores."""
        return self.linear(self.around(*self.words(hidden, batch)))
