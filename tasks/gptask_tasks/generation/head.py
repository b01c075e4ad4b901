"""The language model itself, which also scores the given answers.

Shapes: B sequences, T positions, C channels, N learned tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from gptask import GeneratedText, GenerationHead

from gptask_tasks.scores import Likelihood

if TYPE_CHECKING:
    from gptask import Batch


@dataclass
class ScoredAnswer(GeneratedText):
    """A generated text, with the nats, tokens and UTF-8 bytes of the given answers if there are any."""

    counts: dict[str, float] = field(default_factory=dict)


class AnswerHead(GenerationHead):
    """Writes an answer, and scores the ones that are given."""

    def outputs(self, texts: list[GeneratedText], batch: Batch) -> list[Any]:
        """Return the generated texts; where answers are given, their likelihood is added."""
        answers = [ScoredAnswer(**vars(text)) for text in texts]
        learned_BT, next_ids_BT = batch.predicting(), batch.input_ids.roll(-1, 1)
        if not learned_BT.any():
            return answers
        states_BTC = self.backbone.hidden(batch.input_ids, batch.lengths, self.needed_positions(batch))
        nats_BT = torch.zeros(learned_BT.shape, device=states_BTC.device)
        nats_BT[learned_BT] = self.backbone.token_nll(states_BTC[learned_BT], next_ids_BT[learned_BT])
        for answer, ids_T, learned_T, nats_T in zip(answers, next_ids_BT, learned_BT, nats_BT, strict=True):
            text = self.backbone.tokenizer.decode(ids_T[learned_T].tolist(), skip_special_tokens=True)
            counts = float(nats_T.sum()), int(learned_T.sum()), len(text.encode())
            answer.counts = dict(zip(Likelihood.COUNTS, counts, strict=True))
        return answers
