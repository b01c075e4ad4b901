"""The language model itself, which learns and scores every token of a text.

Shapes: B sequences, T positions, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from gptask import Batch, Head
from torch import Tensor


class LanguageModelHead(Head):
    """Cross-entropy of the token behind each position; it uses the vocabulary projection and owns no weights."""

    def _next_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the token ids (B, T) that follow, and which of them (B, T) are predicted: none of pads and context."""
        device, last_B = batch.input_ids.device, batch.last()
        next_ids_BT = batch.input_ids.roll(-1, dims=1)
        rows_B = torch.arange(len(last_B), device=device)
        next_ids_BT[rows_B, last_B] = torch.tensor(batch.extra["next"], device=device)
        position_1T = torch.arange(next_ids_BT.shape[1], device=device)[None]
        skip_B = torch.tensor(batch.extra["skip"], device=device)
        return next_ids_BT, (position_1T >= skip_B[:, None]) & (position_1T <= last_B[:, None])

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the mean over all tokens of the batch, ends of documents included."""
        next_ids_BT, predicted_BT = self._next_tokens(batch)
        return self.backbone.token_nll(hidden[predicted_BT], next_ids_BT[predicted_BT]).mean()

    def predict(self, hidden: Tensor, batch: Batch) -> list[Any]:
        """Return the nats and the number of the tokens of each sequence's text; ends of documents are left out."""
        next_ids_BT, scored_BT = self._next_tokens(batch)
        device = scored_BT.device
        rows_B = torch.arange(len(scored_BT), device=device)
        scored_BT[rows_B, batch.last()] &= torch.tensor(batch.extra["end"], device=device) == 0
        nats_BT = torch.zeros(scored_BT.shape, device=device)
        nats_BT[scored_BT] = self.backbone.token_nll(hidden[scored_BT], next_ids_BT[scored_BT])
        return torch.stack([nats_BT.sum(1, dtype=torch.float64), scored_BT.sum(1)], 1).tolist()
