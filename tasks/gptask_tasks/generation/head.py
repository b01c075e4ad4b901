"""The language model itself, which also scores the given answers.

Shapes: B sequences, T positions, C channels, N learned tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from gptask import GeneratedText, GenerationHead
from torch import Tensor

from gptask_tasks.scores import Likelihood

if TYPE_CHECKING:
    from gptask import Backbone, Batch


@dataclass
class ScoredAnswer(GeneratedText):
    """A generated text, with the nats, tokens and UTF-8 bytes of the given answers if there are any."""

    counts: dict[str, float] = field(default_factory=dict)


class AnswerHead(GenerationHead):
    """Writes an answer, and scores the ones that are given."""

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Generate behind every prompt; where answers are given, their likelihood is added."""
        answers = [ScoredAnswer(**vars(text)) for text in super().predict(backbone, batch)]
        learned_BT, next_ids_BT = batch.predicting(), batch.input_ids.roll(-1, 1)
        if not learned_BT.any():
            return answers
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths, self.needed_positions(batch))
        nats_BT = torch.zeros(learned_BT.shape, device=hidden.device)
        nats_BT[learned_BT] = self.backbone.token_nll(hidden[learned_BT], next_ids_BT[learned_BT])
        for answer, ids_T, learned_T, nats_T in zip(answers, next_ids_BT, learned_BT, nats_BT, strict=True):
            text = backbone.tokenizer.decode(ids_T[learned_T].tolist(), skip_special_tokens=True)
            counts = float(nats_T.sum()), int(learned_T.sum()), len(text.encode())
            answer.counts = dict(zip(Likelihood.COUNTS, counts, strict=True))
        return answers
