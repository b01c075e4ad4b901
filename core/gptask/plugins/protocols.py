"""Types of what gptask hands to a plugin and of what it expects of a head; authors rely on these, not on classes.

Shapes: B sequences, T positions, C channels, V vocabulary, N tokens, K values per label.
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

    tokenizer: Any  # of transformers, but that it reads the string of a control token as text

    @property
    def model(self) -> Any:
        """The transformers model, with its adapters if there are any."""

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""

    @property
    def channels(self) -> int:
        """C, the size of a hidden state."""

    @property
    def context(self) -> int:
        """The most positions the model can attend to."""

    @property
    def stop_ids(self) -> set[int]:
        """The token ids that end a text."""

    def hidden(
        self,
        input_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        needed: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states (B, T, C) of right-padded ids (B, T), or ``embeds`` (B, T, C).

        ``lengths`` (B,) counts the tokens of each row. States are only guaranteed to be correct where ``needed`` (B, T)
        is true; None: everywhere.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the vocabulary scores (..., V) of hidden states (..., C)."""

    def token_nll(self, states: Tensor, next_ids: Tensor) -> Tensor:
        """Return the cross-entropy (N,) in nats of states (N, C) and the ids (N,) that follow them, differentiable."""

    def word_vectors(self, words: Iterable[str]) -> Tensor:
        """Return the output embeddings (K, C) of K words; a word of several tokens gets their mean."""


class Batch(Protocol):
    """B right-padded sequences of prompt, target and EOS."""

    input_ids: Tensor  # (B, T)
    lengths: Tensor  # (B,) tokens of prompt + target + EOS
    prompt_lengths: Tensor  # (B,)
    labels: Tensor | None  # (B,) or (B, K)
    extra: dict[str, list[Any]]  # the values of `Encoded.extra`, B for each key

    def prompts(self) -> list[list[int]]:
        """Return the ids of the prompts, without targets and padding."""

    def predicting(self) -> Tensor:
        """Return a mask (B, T), true where the state predicts a token that is learned."""

    def last(self) -> Tensor:
        """Return the positions (B,) of the last real tokens."""


class Corpus(Protocol):
    """The splits of a run's data, each read when it is asked for."""

    def split(self, name: str) -> Sequence[Example]:
        """Return the examples of ``train``, ``validation`` or ``test``."""

    def split_source(self, name: str) -> Any:
        """Return the file names or the hub split that the user set for a split, None if the user set none."""


class TaskHead(Protocol):
    """The part of a model that belongs to a task; `gptask.Head` is the base class to derive from."""

    export_class: ClassVar[str | None]
    decodes: ClassVar[bool]
    last_only: ClassVar[bool]
    lora_top_fraction: ClassVar[float]
    lora_lr: ClassVar[float]
    score_axis: int | None

    def needed_positions(self, batch: Batch) -> Tensor | None:
        """Return which states (B, T) of a batch loss, scores and predictions depend on; None: all."""

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the scalar loss of a batch from its last hidden states (B, T, C)."""

    def predict(self, hidden: Any, batch: Batch) -> list[Any]:
        """Return one JSON-serialisable output per sequence; ``hidden``: states (B, T, C), None if it ``decodes``."""

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Return differentiable log-probabilities of classes (B, K), tags (B, W, K) or spans (B, T, 2); None: none."""

    def scored_words(self, batch: Batch) -> Tensor | None:
        """Return which words (B, W) of the scores each sequence stands for; None: all of its own."""

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights under the names of ``export_class``, and the values of its config."""
