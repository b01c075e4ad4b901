"""Weights in the forms that inference multiplies with: adapters merged, weights in oneDNN's own layout.

A weight that few rows are multiplied with (as in decoding) is kept in oneDNN's layout: torch otherwise converts it for
every product, which takes as long as the product.

Shapes: C input channels, N output channels, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from gptask.model.engine import private

PACKED_MAX_ROWS = 256  # rows up to which a packed weight pays (tests/benchmarks/packed_weights.py)


def tensor_identity(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor's values are replaced or edited in place, but for edits through ``.data``."""
    return tensor.data_ptr(), private.tensor_version(tensor)


class InferenceWeight:
    """A weight (N, C) for inference, packed if that helps; ``identity`` tells what it was made of."""

    def __init__(self, weight: Tensor, layer: Any, parts: Sequence[Tensor]) -> None:
        self.identity = _identity(layer)
        self.sources = [part.detach() for part in parts]  # while these live, no other tensor gets their addresses
        self.packed = private.can_prepack(weight)
        self.weight = private.prepack(weight, PACKED_MAX_ROWS) if self.packed else weight

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x Wᵀ + bias``."""
        if self.packed:
            return private.prepacked_linear(x, self.weight, bias)
        return nn.functional.linear(x, self.weight, bias)


class InferenceWeights:
    """The inference weights of a model's layers, each made when it is first needed.

    The engine drops all of them when the model is set to training, and before every pass those whose parts have
    changed. Torch cannot see an edit through ``.data`` (``p.data.normal_()``): after one, call ``backbone.train()`` and
    ``backbone.eval()``, or edit ``p`` itself under `torch.no_grad`.
    """

    def __init__(self) -> None:
        self.drops = 0  # how often all were dropped
        self._made: dict[nn.Module, InferenceWeight] = {}
        self._factors: dict[tuple[nn.Module, str], tuple[Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: Any) -> InferenceWeights:
        return InferenceWeights()  # a copy of the model makes its own: packed weights can't be copied

    def clear(self) -> None:
        """Drop all."""
        self.drops += 1
        self._made, self._factors = {}, {}

    def drop_outdated(self) -> None:
        """Drop those whose layer's parts are others than they were made of, or have been edited."""
        outdated = [layer for layer, made in list(self._made.items()) if made.identity != _identity(layer)]
        for layer in outdated:
            self._made.pop(layer, None)  # another thread may have been faster

    def drop_adapter(self, adapter: str) -> None:
        """Drop what was made of an added adapter."""
        self._factors = {key: factors for key, factors in self._factors.items() if key[1] != adapter}

    def packed(self, layer: Any) -> InferenceWeight | None:
        """A linear layer's weight in oneDNN's layout, None where it has no such form."""
        if layer not in self._made and private.can_prepack(layer.weight):
            self._made[layer] = InferenceWeight(layer.weight, layer, _parts(layer))
        return self._made.get(layer)

    def merged(self, layer: Any) -> InferenceWeight:
        """A LoRA layer's weight with the model's own adapter added to it."""
        if layer not in self._made:
            weight_NC, a_rC, b_Nr = _parts(layer)
            merged = weight_NC.float() + layer.scaling["default"] * (b_Nr.float() @ a_rC.float())
            self._made[layer] = InferenceWeight(merged.to(weight_NC.dtype), layer, (weight_NC, a_rC, b_Nr))
        return self._made[layer]

    def factors(self, layer: Any, adapter: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """A (r, C) and ``scale · B`` (N, r) of an added adapter, in the number format of ``like``."""
        key = layer, adapter
        if key not in self._factors:
            self._factors[key] = scaled_factors(layer, adapter, like)
        return self._factors[key]


def scaled_factors(layer: Any, adapter: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, C) and ``scale · B`` (N, r) of a LoRA layer's adapter, in the number format of ``like``."""
    a_rC, b_Nr = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return a_rC.to(like.dtype), (layer.scaling[adapter] * b_Nr).to(like.dtype)


def _identity(layer: Any) -> list[Any]:
    """What changes when a layer's parts, or the scale of its adapter, are others."""
    return [*map(tensor_identity, _parts(layer)), getattr(layer, "scaling", {}).get("default")]


def _parts(layer: Any) -> tuple[Tensor, ...]:
    """What a layer's inference weight is made of."""
    if isinstance(layer, nn.Linear):
        return (layer.weight,)
    return layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
