"""Heads: what turns hidden states into a loss and into predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptask.model.engine.loss import ChunkedCrossEntropy
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.protocols import Backbone, Batch

MAX_LOGITS = 2**26  # scores held at once by a loss: some 650 MB, as they are held in three forms


class Head(nn.Module, ABC):
    """The part of a model that belongs to a task. Its parameters are trained and saved with the run.

    ``export_class`` is the transformers class `gptask export` writes for, None where none fits. A head with
    ``last_only`` reads no state but that of a sequence's last real token (`needed_positions` says what others read). ``lora_top_fraction`` is
    the share of layers, from the top, that LoRA adapts for it unless ``tuning.top`` says otherwise, and ``lora_lr`` its
    learning rate on SmolLM2-135M (`gptask.model.backbone.tuning.scaled_lora_lr` has it for other models) unless ``tuning.lr`` does.
    """

    export_class: ClassVar[str | None] = "AutoModelForCausalLM"
    last_only: ClassVar[bool] = False
    lora_top_fraction: ClassVar[float] = 1.0
    lora_lr: ClassVar[float] = 1e-3

    def needed_positions(self, batch: Batch) -> Tensor | None:
        """Which of a batch's states (B, T) the loss and predictions may depend on; None: all.

        Of the others, the last layer's feed-forward part is not computed.
        """
        if not self.last_only:
            return None
        position = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        return position == batch.last()[:, None]

    @abstractmethod
    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Loss of a batch, a scalar, from the last hidden states (B, T, C)."""

    @abstractmethod
    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Say something about each of the B sequences, as plain numbers, lists or texts.

        ``hidden`` are the states (B, T, C) where the caller has them already.
        """

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights under the names of ``export_class``, and values of its config (or generation config)."""
        return {}, {}


class GenerationHead(Head):
    """The language model itself: cross-entropy on target tokens, prediction by decoding.

    It borrows the backbone's vocabulary projection (tied to the embedding in most GPTs) and owns no weights.
    """

    lora_lr = 3e-3

    backbone: Backbone

    def __init__(self, backbone: Backbone, options: GenerationOptions) -> None:
        super().__init__()
        object.__setattr__(self, "backbone", backbone)  # borrowed: not a submodule, so not saved twice
        self.options = options

    def needed_positions(self, batch: Batch) -> Tensor:
        """Those (B, T) that predict a target token."""
        return batch.predicting()

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over target tokens; logits exist only for the N positions that predict one."""
        here = self.needed_positions(batch)
        return token_nll(self.backbone, hidden[here], torch.roll(batch.input_ids, -1, dims=1)[here]).mean()

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """Generate behind every prompt."""
        return generate(cast("GPTBackbone", backbone), batch.prompts(), self.options)

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """How text is decoded."""
        return {}, self.options.to_transformers()


def token_nll(backbone: Backbone, states: Tensor, following: Tensor) -> Tensor:
    """(N,) cross-entropy of states (N, C) and the token ids (N,) that follow them.

    Where their logits (N, V) are large (Gemma's V is 262,144), they are made part by part and not kept; so they are
    wherever the vocabulary projection does not learn, which is also the fastest.
    """
    if (frozen := backbone.frozen_projection(states)) is not None:
        return ChunkedCrossEntropy.apply(states, frozen, following)

    def part(states: Tensor, following: Tensor) -> Tensor:
        return nn.functional.cross_entropy(backbone.logits(states).float(), following, reduction="none")

    size = max(1, MAX_LOGITS // backbone.model.get_output_embeddings().weight.shape[0])
    if len(states) <= size:
        return part(states, following)
    pairs = zip(states.split(size), following.split(size), strict=True)
    return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in pairs])
