"""Passes that leave a model after its first layers: rows whose adapter was trained in a model without the others.

The model's last norm applies to the states of the last layer that a pass goes through; keys and values of the layers
above are never made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gptask.model.engine.forward_registry import is_wrapped_by, original_forward, replace_forward, replaced_by
from gptask.model.engine.forward_state import current_state, forward_state
from gptask.model.engine.interface import EngineBackbone


class SkippableLayer:
    """The forward function of a decoder layer: what it was before, or nothing in passes that end below the layer."""

    def __init__(self, number: int, before: Callable[..., Any] | None) -> None:
        self.number, self.before = number, before
        self.outputs = 0  # that the layer returns in a tuple; 0: it returns the states alone

    def __call__(self, layer: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The states after the layer, in the form in which the layer returns them."""
        state = current_state()
        if state and state.layers is not None and self.number >= state.layers:
            return (hidden, *[None] * (self.outputs - 1)) if self.outputs else hidden
        compute = partial(self.before, layer) if self.before else original_forward(layer)
        out = compute(hidden, *args, **kwargs)
        self.outputs = len(out) if isinstance(out, tuple) else 0
        return out


def install(backbone: EngineBackbone) -> None:
    """Let passes leave the model after any of its layers."""
    for number, layer in enumerate(backbone.layers):
        if not is_wrapped_by(layer, SkippableLayer):
            replace_forward(layer, SkippableLayer(number, replaced_by(layer)), wraps=True)
    with torch.inference_mode():  # in which the layers learn what they return
        backbone.body(input_ids=_probe_ids(backbone), use_cache=False)


def why_not(backbone: EngineBackbone, layers: int) -> str | None:
    """Why passes can't leave the model after its first ``layers``; None where they can.

    Tried against the model that has no others, on token ids.
    """
    if not backbone.layers:
        return "its layers are no plain list"
    ids_1T, training = _probe_ids(backbone), backbone.peft.training
    backbone.peft.eval()
    try:
        install(backbone)
        with torch.inference_mode():
            with forward_state(layers=layers):
                left_1TC = backbone.body(input_ids=ids_1T, use_cache=False).last_hidden_state
            with backbone.only_layers(range(layers)):
                expected_1TC = backbone.body(input_ids=ids_1T, use_cache=False).last_hidden_state
    except Exception as error:  # models that need all their layers raise whatever they like
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        backbone.peft.train(training)
    if not (left_1TC - expected_1TC).abs().max() <= 0.001 * expected_1TC.abs().max():
        return "its states after them are not those of a model that has no others"
    return None


def _probe_ids(backbone: EngineBackbone) -> Tensor:
    return torch.arange(4, device=backbone.device)[None]
