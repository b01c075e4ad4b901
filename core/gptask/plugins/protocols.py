"""What core hands to a plugin, and what it expects of a head, as types: an author relies on these and on no class.

Shapes: B sequences, T positions, C channels, V vocabulary, K values per label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gptask.plugins.types import Example


class Backbone(Protocol):
    """The shared GPT: a causal language model and its tokenizer."""

    tokenizer: Any

    @property
    def model(self) -> Any:
        """The transformers model, with adapters inside if there are any."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def channels(self) -> int:
        """C."""

    @property
    def context(self) -> int:
        """The most positions the model can see."""

    @property
    def stop_ids(self) -> set[int]:
        """Ids that end a text."""

    def hidden(self, input_ids: Tensor, lengths: Tensor | None = None, needed: Tensor | None = None) -> Tensor:
        """Last hidden states (B, T, C) of right-padded ids (B, T) with ``lengths`` (B,), right at least where they are
        ``needed`` (B, T)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores (..., V) of hidden states (..., C)."""

    def frozen_projection(self, hidden: Tensor) -> Tensor | None:
        """Weights (V, C) where ``hidden @ weights.T`` is all that `logits` computes and they do not learn."""

    def word_vectors(self, words: Iterable[str]) -> Tensor:
        """Output embeddings (K, C) of K words, averaged where a word has several tokens."""


class Batch(Protocol):
    """Right-padded sequences of prompt, target and EOS."""

    input_ids: Tensor  # (B, T)
    lengths: Tensor  # (B,) prompt + target + EOS
    prompt_lengths: Tensor  # (B,)
    labels: Tensor | None  # (B,) or (B, K)
    extra: dict[str, list[Any]]  # what `Encoded.extra` holds, B values each

    def prompts(self) -> list[list[int]]:
        """The prompts' ids without targets and padding."""

    def predicting(self) -> Tensor:
        """(B, T) true where the state predicts a token that is learned."""

    def last(self) -> Tensor:
        """(B,) position of the last real token."""


class Corpus(Protocol):
    """The splits of a run's data; nothing is read before a split is asked for."""

    def split(self, name: str) -> Sequence[Example]:
        """The examples of ``train``, ``validation`` or ``test``."""

    def given(self, name: str) -> Any:
        """The file names (or the hub split) that the user gave for a split, None if none."""


class TaskHead(Protocol):
    """The part of a model that belongs to a task; `gptask.Head` is the base class to derive from."""

    export_class: ClassVar[str | None]
    last_only: ClassVar[bool]
    lora_top_fraction: ClassVar[float]
    lora_lr: ClassVar[float]

    def needed_positions(self, batch: Batch) -> Tensor | None:
        """Which of a batch's states (B, T) the loss and the predictions depend on; None: all."""

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Loss of a batch, a scalar, from the last hidden states (B, T, C)."""

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """One JSON-serialisable output per sequence."""

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights under the names of ``export_class``, and values of its config."""
