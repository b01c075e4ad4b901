"""The language model itself, which also says how likely the given answers are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from gptask import GeneratedText, GenerationHead, token_nll
from torch import Tensor

from gptask_tasks.scores import Likelihood

if TYPE_CHECKING:
    from gptask import Backbone, Batch


@dataclass
class ScoredAnswer(GeneratedText):
    """A generated text; of the answers given, if any were, the nats, tokens and UTF-8 bytes."""

    counts: dict[str, float] = field(default_factory=dict)


class AnswerHead(GenerationHead):
    """Writes an answer, and judges the ones that are there."""

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Generate behind every prompt; with answers at hand, their likelihood comes with it."""
        said = [ScoredAnswer(**vars(text)) for text in super().predict(backbone, batch)]
        here, following = batch.predicting(), batch.input_ids.roll(-1, 1)
        if not here.any():
            return said
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths, self.needed_positions(batch))
        each = torch.zeros(here.shape, device=hidden.device)
        each[here] = token_nll(backbone, hidden[here], following[here])
        for answer, ids, mask, row in zip(said, following, here, each, strict=True):
            learned = backbone.tokenizer.decode(ids[mask].tolist(), skip_special_tokens=True)
            counts = float(row.sum()), int(mask.sum()), len(learned.encode())
            answer.counts = dict(zip(Likelihood.COUNTS, counts, strict=True))
        return said
