"""A number from the last real token."""

from __future__ import annotations

import torch
from gptask import Backbone, Batch, Head
from torch import Tensor, nn

from similarity import Loss


class RegressionHead(Head):
    """A number for each sequence, linear in the state (C) of its last real token; at first 0.5 for all."""

    export_class = None  # `gptask export` has no transformers class to write
    last_only = True
    lora_top_fraction = 0.5

    def __init__(self, backbone: Backbone, loss: Loss) -> None:
        super().__init__()
        self.kind = loss
        self.linear = nn.Linear(backbone.channels, 1, device=backbone.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 0.5)

    def shares(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B,) numbers from states (B, T, C)."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.linear(hidden[rows, batch.last()].float()).squeeze(-1)

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean squared error, or one that grows linearly beyond a tenth of the scale."""
        said, true = self.shares(hidden, batch), batch.labels
        if self.kind is Loss.huber:
            return nn.functional.huber_loss(said, true, delta=0.1)
        return nn.functional.mse_loss(said, true)

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[float]:
        """A number for each of the B sequences."""
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths, self.needed_positions(batch))
        return self.shares(hidden, batch).tolist()
