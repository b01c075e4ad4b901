"""The language model itself, learning and scoring every token of a text."""

from __future__ import annotations

from typing import Any

import torch
from gptask import Backbone, Batch, Head, token_nll
from torch import Tensor


class LanguageModelHead(Head):
    """Cross-entropy on the token behind each of a block's; it borrows the vocabulary projection and owns no weights."""

    backbone: Backbone

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        object.__setattr__(self, "backbone", backbone)  # borrowed: not a submodule, so not saved twice

    def _following(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token ids (B, T) that follow, and which of them (B, T) are to be predicted: not those of pads and context."""
        device, last = batch.input_ids.device, batch.last()
        following = batch.input_ids.roll(-1, dims=1)
        rows = torch.arange(len(last), device=device)
        following[rows, last] = torch.tensor(batch.extra["next"], device=device)
        position = torch.arange(following.shape[1], device=device)[None]
        skip = torch.tensor(batch.extra["skip"], device=device)
        return following, (position >= skip[:, None]) & (position <= last[:, None])

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean over all tokens of the batch, ends of documents included."""
        following, here = self._following(batch)
        return token_nll(self.backbone, hidden[here], following[here]).mean()

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Nats and number of the tokens of each sequence's text."""
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths)
        following, here = self._following(batch)
        rows = torch.arange(len(here), device=here.device)
        here[rows, batch.last()] &= torch.tensor(batch.extra["end"], device=here.device) == 0
        costs = torch.zeros(here.shape, device=here.device)
        costs[here] = token_nll(backbone, hidden[here], following[here])
        return torch.stack([costs.sum(1, dtype=torch.float64), here.sum(1)], 1).tolist()
