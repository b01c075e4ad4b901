"""What the engine needs of a backbone beside the plugin contract."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from gptask.plugins.protocols import Backbone


class EngineBackbone(Backbone, Protocol):
    """A decoder whose forward passes the engine may pack, and whose layers it may replace."""

    peft: Any  # the model, PEFT-wrapped where it has adapters
    origin: Any  # where its weights came from, with their hash

    @property
    def config(self) -> Any:
        """The model's configuration; in a multimodal model, that of its text part."""

    @property
    def body(self) -> Any:
        """The decoder without the vocabulary projection."""

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers; empty where the model holds them in no plain list."""

    def sees_all(self, positions: int) -> bool:
        """Whether every layer sees this many positions back."""

    def can_pack(self, positions: int) -> bool:
        """Whether sequences of up to this many positions may be packed into one row."""
