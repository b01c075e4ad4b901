"""What the layers read during a forward pass beside their input.

It travels in a ContextVar, so that passes in several threads through one backbone do not see each other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ForwardState:
    """One pass of an engine. Without it, as where somebody calls the model directly, layers compute as they are."""

    layout: Any = None  # `packing.PackedLayout` or `decoding.DecodingStep`; None for padded batches
    needed_places: Tensor | None = None  # flat positions of the last states that are needed; None: all
    layers: int | None = None  # that this pass goes through, from the bottom; None: all
    adapter: str | None = None  # the digest of an added adapter; None: the model as it is
    row_adapters: Any = None  # `inference_weights.RowAdapters` where the rows of the pass have different ones
    inference_weights: Any = None  # `linear.InferenceWeights`; None where weights may learn
    activations: Any = None  # `activation_cache.Capture` or `Resume`
    lora_outputs: dict[Any, Any] = field(default_factory=dict)  # of LoRA groups whose layers have not all been called


_state: ContextVar[ForwardState | None] = ContextVar("forward_state", default=None)


def current_state() -> ForwardState | None:
    """The state of this thread's pass; None outside of one."""
    return _state.get()


@contextmanager
def forward_state(**changes: Any) -> Iterator[None]:
    """A pass inside this context has the state around it with these ``changes``."""
    token = _state.set(replace(_state.get() or ForwardState(), lora_outputs={}, **changes))
    try:
        yield
    finally:
        _state.reset(token)
