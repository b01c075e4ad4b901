"""Heads: what turns hidden states into a loss and into predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gptask.generation import Generation, generate

if TYPE_CHECKING:
    from gptask.backbone.model import Backbone
    from gptask.data.module import Batch


class Head(nn.Module, ABC):
    """The part of a model that belongs to a task. Its parameters are trained and saved with the run."""

    export_class = "AutoModelForCausalLM"  # what `gptask export` writes for plain transformers

    @abstractmethod
    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Loss of a batch, a scalar, from the last hidden states (B, T, C)."""

    @abstractmethod
    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Say something about each of the B sequences, as plain numbers, lists or texts.

        ``hidden`` are the states (B, T, C) where the caller has them already.
        """

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights under the names of ``export_class``, and config values it needs."""
        return {}, {}


class GenerationHead(Head):
    """The language model itself: cross-entropy on target tokens, prediction by decoding.

    It borrows the backbone's vocabulary projection (tied to the embedding in most GPTs) and owns no weights.
    """

    def __init__(self, backbone: Backbone, options: Generation) -> None:
        super().__init__()
        object.__setattr__(self, "backbone", backbone)  # borrowed: not a submodule, so not saved twice
        self.options = options

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over target tokens; logits (N, V) exist only for the N positions that predict one."""
        here = batch.predicting()  # (B, T)
        following = torch.roll(batch.input_ids, -1, dims=1)[here]  # (N,)
        logits = self.backbone.logits(hidden[here])  # (N, V)
        return nn.functional.cross_entropy(logits.float(), following)

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Generate behind every prompt."""
        return generate(backbone, batch.prompts(), self.options)
