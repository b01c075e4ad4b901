"""The language model itself, which also says how likely the given answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gptask.generation import Text
from gptask.heads import GenerationHead, nats
from torch import Tensor

from gptask_tasks.generation.metrics import Counts

if TYPE_CHECKING:
    from gptask.backbone.model import Backbone
    from gptask.data.module import Batch


@dataclass
class Answer(Counts, Text):
    """A generated text with the counts of its conversation."""


class AnswerHead(GenerationHead):
    """Writes an answer, and judges the ones that are there."""

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Generate behind every prompt; with answers at hand, their likelihood comes with it."""
        said = super().predict(backbone, batch)
        here, following = batch.predicting(), batch.input_ids.roll(-1, 1)
        if not here.any():
            return said
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths)
        each = torch.zeros(here.shape, device=hidden.device)
        each[here] = nats(backbone, hidden[here], following[here])
        answers = []
        for text, ids, mask, row in zip(said, following, here, each, strict=True):
            learned = backbone.tokenizer.decode(ids[mask].tolist(), skip_special_tokens=True)
            counts = float(row.sum()), int(mask.sum()), len(learned.encode())
            answers.append(Answer(text.text, text.score, text.samples, *counts))
        return answers
