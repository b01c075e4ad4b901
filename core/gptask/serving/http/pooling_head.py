"""Hidden states as vectors: of a text, or of each of its tokens.

Shapes: B sequences, T positions, C channels.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gptask.model.heads import Head
from gptask.plugins.protocols import Backbone, Batch
from gptask.serving.models.served_run import ServedModel

Pooling = Literal["mean", "last", "all"]
_heads: WeakKeyDictionary[ServedModel, dict[tuple[Pooling, bool], PoolingHead]] = WeakKeyDictionary()


class PoolingHead(Head):
    """The mean of the states of a sequence's tokens, the state of its last token, or all of them (``all``).

    ``normalize`` scales vectors to length 1.
    """

    def __init__(self, backbone: Backbone, pooling: Pooling, normalize: bool) -> None:
        super().__init__(backbone)
        self.pooling, self.normalize = pooling, normalize

    def needed_positions(self, batch: Batch) -> Tensor:
        """Return the positions (B, T) of the real tokens, or of the last ones."""
        positions_T = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        last_B1 = batch.last()[:, None]
        return positions_T == last_B1 if self.pooling == "last" else positions_T <= last_B1

    def loss(self, hidden: Tensor, batch: Batch) -> NoReturn:
        """Nothing is learned."""
        raise NotImplementedError

    def predict(self, hidden: Tensor, batch: Batch) -> list[Any]:
        """Return a list of C numbers for each sequence, or such a list for each of its tokens."""
        vectors = []
        for states_TC, length in zip(hidden, batch.lengths.tolist(), strict=True):
            states_TC = states_TC[:length].float()
            pooled = {"mean": lambda s: s.mean(0), "last": lambda s: s[-1], "all": lambda s: s}[self.pooling](states_TC)
            vectors.append(torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled)
        return [vector.tolist() for vector in vectors]


def pooling_head(model: ServedModel, pooling: Pooling, normalize: bool) -> PoolingHead:
    """The head of a model, the same one for each request."""
    heads = _heads.setdefault(model, {})
    return heads.setdefault((pooling, normalize), PoolingHead(model.backbone, pooling, normalize))
