"""A regression head on the last real token.

Shapes: B sequences, T positions, C channels.
"""

from __future__ import annotations

import torch
from gptask import Backbone, Batch, Head
from torch import Tensor, nn

from similarity import Loss


class RegressionHead(Head):
    """A number for each sequence, linear in the state (C,) of its last real token; before training 0.5 for all."""

    export_class = None  # `gptask export` has no transformers class to write
    last_only = True
    lora_top_fraction = 0.5

    def __init__(self, backbone: Backbone, loss: Loss) -> None:
        super().__init__(backbone)
        self.objective = loss
        self.linear = nn.Linear(backbone.channels, 1, device=backbone.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 0.5)

    def shares(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the shares of the scale (B,) from states (B, T, C)."""
        rows_B = torch.arange(len(hidden), device=hidden.device)
        shares_B1 = self.linear(hidden[rows_B, batch.last()].float())
        return shares_B1.squeeze(-1)

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error, or the Huber loss, which is linear beyond a tenth of the scale."""
        predicted_B, true_B = self.shares(hidden, batch), batch.labels
        if self.objective is Loss.huber:
            return nn.functional.huber_loss(predicted_B, true_B, delta=0.1)
        return nn.functional.mse_loss(predicted_B, true_B)

    def predict(self, hidden: Tensor, batch: Batch) -> list[float]:
        """Return a number for each of the B sequences."""
        return self.shares(hidden, batch).tolist()
