"""The scores behind a prediction, of encoded items and, with gradients, of embeddings.

Shapes: B items, T positions, C channels, N tokens of a written text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptask.data.datamodule import PaddedBatch, collate
from gptask.errors import UserError
from gptask.runs.predictor import Predictor

if TYPE_CHECKING:
    from gptask.analysis.explain.objectives import Index, Objective


def log_probabilities(predictor: Predictor, hidden: Tensor, batch: PaddedBatch) -> Tensor:
    """`Head.scores`, or the log-probabilities (B, N) of the written tokens, which all items have as their target.

    Raises `UserError` for a head that has no scores.
    """
    head = predictor.head
    if head.decodes:
        needed_BT = batch.predicting()
        next_ids_BT = torch.roll(batch.input_ids, -1, dims=1)
        nll = predictor.backbone.token_nll(hidden[needed_BT], next_ids_BT[needed_BT])
        return -nll.view(len(hidden), -1)
    scores = head.scores(hidden, batch)
    if scores is None:
        raise UserError(
            f"{type(head).__name__}, the head of task {type(predictor.task).__name__}, has no scores, so there is "
            "nothing to explain: its author adds the method scores(hidden, batch), which returns the log-probabilities "
            "behind a prediction, of classes (B, K), of tags (B, W, K) or of the ends of a span (B, T, 2)"
        )
    return scores


def needed_positions(predictor: Predictor, batch: PaddedBatch) -> Tensor | None:
    """The states (B, T) that `log_probabilities` reads; None: all."""
    return batch.predicting() if predictor.head.decodes else predictor.head.needed_positions(batch)


def item_scores(predictor: Predictor, items: Sequence[dict[str, Any]]) -> list[Tensor]:
    """The log-probabilities of each item, a float32 tensor on the CPU without a batch's dimension and its pads."""
    scores: list[Tensor] = [torch.empty(0)] * len(items)
    with torch.inference_mode():
        for rows in predictor.batches(items):
            batch = collate([items[row] for row in rows]).to(predictor.backbone.device)
            hidden = predictor.backbone.hidden(batch.input_ids, batch.lengths, needed_positions(predictor, batch))
            computed = log_probabilities(predictor, hidden, batch).float().cpu()
            for row, values in zip(rows, computed, strict=True):
                is_by_position = computed.ndim == 3 and computed.shape[1] == batch.input_ids.shape[1]
                scores[row] = values[: items[row]["length"]] if is_by_position else values
    return scores


def values_of_embeddings(
    predictor: Predictor, item: dict[str, Any], objectives: Sequence[tuple[Objective, Index]], embeds: Tensor
) -> Tensor:
    """What is attributed (B, M) for B embeddings (B, T, C) of an item and M objectives; differentiable."""
    batch = collate([item] * len(embeds)).to(predictor.backbone.device)
    hidden = predictor.backbone.hidden(embeds=embeds, needed=needed_positions(predictor, batch))
    scores = log_probabilities(predictor, hidden, batch)
    return torch.stack([objective.attributed(scores, index) for objective, index in objectives], 1)


def are_tags(scores: Tensor) -> bool:
    """Whether an item's scores (W, K) are those of tags, which sum to 1 for each word; of a span's ends each column."""
    if scores.shape[-1] != 2:
        return True
    return bool(torch.allclose(scores[0].exp().sum(), torch.ones(()), atol=1e-3))
