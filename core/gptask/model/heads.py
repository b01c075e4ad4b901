"""Heads turn hidden states into a loss and into predictions.

Shapes: B sequences, T positions, C channels, V vocabulary, N target tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gptask.model.generation.generate import GeneratedText, generate
from gptask.plugins.generation_options import GenerationOptions

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.protocols import Backbone, Batch


class BackboneReference:
    """Holds a head's backbone where `nn.Module` does not look, so that it is not saved, moved or trained as its part.

    A copy of a head refers to the same backbone, and to the copy of it in ``deepcopy((backbone, head))``.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __deepcopy__(self, memo: dict[int, Any]) -> BackboneReference:
        return BackboneReference(memo.get(id(self.backbone), self.backbone))


class Head(nn.Module, ABC):
    """The part of a model that belongs to a task. Its parameters are trained and saved with the run.

    ``export_class`` is the transformers class that `gptask export` writes for, None where none fits. A head that
    ``decodes`` generates in `predict`, from the prompts and not from given states. A head with ``last_only`` reads only
    the state of a sequence's last real token (other heads say in `needed_positions` what they read).
    ``lora_top_fraction`` is the share of layers, counted from the top, that LoRA adapts for this head unless
    ``tuning.top`` is set. ``lora_lr`` is its learning rate on SmolLM2-135M unless ``tuning.lr`` is set;
    `gptask.model.backbone.tuning.scaled_lora_lr` scales it for other models. ``score_axis`` is the axis of `scores`
    along which the probabilities sum to 1: the last one for classes and tags, 1 for the positions of a span, None where
    each class is a yes or no of its own.
    """

    export_class: ClassVar[str | None] = "AutoModelForCausalLM"
    decodes: ClassVar[bool] = False
    last_only: ClassVar[bool] = False
    lora_top_fraction: ClassVar[float] = 1.0
    lora_lr: ClassVar[float] = 1e-3
    score_axis: int | None = -1

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._reference = BackboneReference(backbone)

    @property
    def backbone(self) -> Backbone:
        """The backbone, which is borrowed: it is no submodule, and its weights are not among the head's."""
        return self._reference.backbone

    def needed_positions(self, batch: Batch) -> Tensor | None:
        """Return which of a batch's states (B, T) loss, scores and predictions may depend on; None means all.

        The last layer's feed-forward part is not computed for the others.
        """
        if not self.last_only:
            return None
        positions_T = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        return positions_T == batch.last()[:, None]

    @abstractmethod
    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar, from the last hidden states (B, T, C)."""

    @abstractmethod
    def predict(self, hidden: Any, batch: Batch) -> list[Any]:
        """Return one JSON-serialisable output (numbers, lists or texts) per sequence.

        ``hidden`` are the last hidden states (B, T, C), and None for a head that ``decodes``. A subclass annotates it
        as the one of the two that it gets.
        """

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Return the log-probabilities behind the predictions, differentiable in the states (B, T, C); None: has none.

        They are those of K classes (B, K), each class a yes or no of its own where a sequence may have several; of the
        tags (B, W, K) of W words; or of the start and the end of a span (B, T, 2), minus infinity where none may be.
        Rows of padding hold anything.
        """
        return None

    def scored_words(self, batch: Batch) -> Tensor | None:
        """Return which words (B, W) of `scores` each sequence stands for; None: all of its own, pads alone left out.

        A text that is cut into windows has each word in just one of them, and elsewhere as context.
        """
        return None

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights under the names of ``export_class``, and values of its config (or generation config)."""
        return {}, {}


class GenerationHead(Head):
    """The language model itself: cross-entropy on target tokens, prediction by decoding.

    It uses the backbone's vocabulary projection (tied to the embedding in most GPTs) and owns no weights.
    """

    decodes = True
    lora_lr = 3e-3

    def __init__(self, backbone: Backbone, options: GenerationOptions) -> None:
        super().__init__(backbone)
        self.options = options

    def needed_positions(self, batch: Batch) -> Tensor:
        """Return the positions (B, T) whose state predicts a target token."""
        return batch.predicting()

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over target tokens; only the N positions that predict one get logits."""
        needed_BT = self.needed_positions(batch)
        next_ids_BT = torch.roll(batch.input_ids, -1, dims=1)
        return self.backbone.token_nll(hidden[needed_BT], next_ids_BT[needed_BT]).mean()

    def predict(self, hidden: None, batch: Batch) -> list[Any]:
        """Generate a text after every prompt."""
        return self.outputs(generate(cast("GPTBackbone", self.backbone), batch.prompts(), self.options), batch)

    def outputs(self, texts: list[GeneratedText], batch: Batch) -> list[Any]:
        """Return what `predict` returns, from the texts that were generated behind the prompts.

        A subclass that adds to the texts overrides this: `gptask serve` writes the texts of many runs together.
        """
        return texts

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return how text is decoded, as values of a generation config."""
        return {}, self.options.to_transformers()
