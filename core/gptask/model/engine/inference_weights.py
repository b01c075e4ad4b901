"""Weights in the forms that inference multiplies with: adapters merged or stacked, weights in oneDNN's own layout.

A weight that few rows are multiplied with (as in decoding) is kept in oneDNN's layout: torch otherwise converts it for
every product, which takes as long as the product.

Rows of different adapters are multiplied together: ``x Wᵀ + (x A_allᵀ · mask) B_allᵀ``, where A_all and B_all are the
factors of all adapters, and the mask leaves each row the products of its own. W is shared with all other passes; one
packed product with ``[W; A_all]`` would save a twentieth of a step's time, and hold all weights twice.

Shapes: B rows, C input channels, N output channels, r rank, R ranks of all stacked adapters together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptask.model.engine import private
from gptask.model.engine.int4 import MAX_ROWS, is_int4

PACKED_MAX_ROWS = 256  # rows up to which a packed weight pays (tests/benchmarks/packed_weights.py)
OWN = "default"  # the model's own adapter
STACKED_ADAPTERS = 8  # adapters up to which those that no row of a pass has stay stacked beside the others


def tensor_identity(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor's values are replaced or edited in place, but for edits through ``.data``."""
    return tensor.data_ptr(), private.tensor_version(tensor)


class PackedWeight:
    """A weight (N, C) in oneDNN's layout where that helps, as it is elsewhere."""

    def __init__(self, weight: Tensor) -> None:
        self.packed = private.can_prepack(weight)
        self.weight = private.prepack(weight, PACKED_MAX_ROWS) if self.packed else weight

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + bias``."""
        if self.packed:
            return private.prepacked_linear(x, self.weight, bias)
        return nn.functional.linear(x, self.weight, bias)


class InferenceWeight(PackedWeight):
    """A layer's weight (N, C) for inference, with an ``adapter`` merged; ``identity`` tells what it was made of."""

    def __init__(self, weight: Tensor, layer: Any, parts: Sequence[Tensor], adapter: str = OWN) -> None:
        super().__init__(weight)
        self.adapter, self.identity = adapter, _identity(layer, adapter)
        self.sources = [part.detach() for part in parts]  # while these live, no other tensor gets their addresses


class UnmergedLora:
    """The factors of a layer over an int4 weight, which stay apart: merged, they would be rounded to 16 values."""

    def __init__(self, layer: Any, adapter: str) -> None:
        a_rC, b_Nr = scaled_factors(layer, adapter, layer.base_layer.weight)
        self.a, self.b = PackedWeight(a_rC), PackedWeight(b_Nr)
        # for few rows, products in float32 take a third of the time
        self.few_rows_Cr, self.few_rows_rN = (factor.float().T.contiguous() for factor in (a_rC, b_Nr))
        self.adapter, self.identity = adapter, _identity(layer, adapter)
        self.sources = [part.detach() for part in _parts(layer, adapter)]  # as of `InferenceWeight`

    def add_product(self, x: Tensor, base: Tensor) -> Tensor:
        """``base + scale · x Aᵀ Bᵀ``."""
        if x.numel() <= MAX_ROWS * x.shape[-1]:
            low_Mr = x.reshape(-1, x.shape[-1]).float() @ self.few_rows_Cr
            return base + (low_Mr @ self.few_rows_rN).to(base.dtype).view(base.shape)
        return base + self.b.product(self.a.product(x))


class StackedFactors:
    """The factors of several adapters in one LoRA layer: A (R, C) and ``scale · B`` (N, R).

    ``numbers`` (R,) are the numbers of the adapters that the columns of ``x Aᵀ`` belong to; ``kind`` is the number
    format and the device of the states that they are for.
    """

    def __init__(self, layer: Any, adapters: dict[int, str], like: Tensor) -> None:
        factors = [scaled_factors(layer, adapter, like) for adapter in adapters.values()]
        self.a = PackedWeight(torch.cat([a_rC for a_rC, _ in factors]))
        self.b = PackedWeight(torch.cat([b_Nr for _, b_Nr in factors], 1))
        self.kind = _kind(like)
        self.numbers = tuple(
            number for number, (a_rC, _) in zip(adapters, factors, strict=True) for _ in range(len(a_rC))
        )


class AdapterStack:
    """The stacked factors of some adapters, of each layer when it is first needed; None is the model's own adapter."""

    def __init__(self, adapters: Collection[str | None]) -> None:
        self.adapters = list(adapters)
        self._made: dict[nn.Module, StackedFactors | None] = {}
        self._own: dict[nn.Module, list[Any]] = {}  # what the model's own adapter was in the layers that have it

    def factors(self, layer: Any, like: Tensor) -> StackedFactors | None:
        """The factors in a LoRA layer, in the number format of ``like``; None where no adapter has any."""
        made = self._made.get(layer)
        if layer not in self._made or (made and made.kind != _kind(like)):
            names = {number: adapter or own_adapter(layer) for number, adapter in enumerate(self.adapters)}
            present = {number: name for number, name in names.items() if name and name in layer.lora_A}
            if None in self.adapters and OWN in layer.lora_A:
                self._own[layer] = _own_identity(layer)
            made = self._made[layer] = StackedFactors(layer, present, like) if present else None
        return made

    def drop_outdated(self) -> None:
        """Drop the factors of layers whose own adapter has changed."""
        for layer, identity in list(self._own.items()):
            if identity != _own_identity(layer):
                self._made.pop(layer, None)
                self._own.pop(layer, None)


class RowAdapters:
    """The adapter of each row of a pass in which every row reads one token; None is the model as it is."""

    def __init__(self, adapters: Sequence[str | None], stack: AdapterStack) -> None:
        self.adapters, self.stack = list(adapters), stack
        self.numbers_B = torch.tensor([stack.adapters.index(adapter) for adapter in adapters])
        self._masks: dict[tuple[int, ...], Tensor | None] = {}

    def product(self, layer: Any, x_B1C: Tensor) -> Tensor | None:
        """``scale · x Aᵀ Bᵀ`` (B, 1, N) by each row's own factors; None where no adapter has any in this layer."""
        factors = self.stack.factors(layer, x_B1C)
        if factors is None:
            return None
        low_B1R = factors.a.product(x_B1C)
        if (mask_B1R := self._mask(factors.numbers, low_B1R)) is not None:
            low_B1R = low_B1R * mask_B1R
        return factors.b.product(low_B1R)

    def _mask(self, numbers: tuple[int, ...], like: Tensor) -> Tensor | None:
        """1 in the columns that belong to a row's adapter, 0 in others; None where all are 1."""
        if numbers not in self._masks:
            own_BR = self.numbers_B[:, None] == torch.tensor(numbers)
            self._masks[numbers] = None if own_BR.all() else own_BR[:, None].to(like)
        return self._masks[numbers]


class InferenceWeights:
    """The inference weights of a model's layers, each made when it is first needed.

    Passes of several threads use them at the same time, and may drop them at any moment.

    The engine drops all of them when the model is set to training, and before every pass those whose parts have
    changed. Torch cannot see an edit through ``.data`` (``p.data.normal_()``): after one, call ``backbone.train()`` and
    ``backbone.eval()``, or edit ``p`` itself under `torch.no_grad`.
    """

    def __init__(self) -> None:
        self.drops = 0  # how often all were dropped
        self.sole: str | None = None  # the only adapter beside the model, which is merged like a model's own
        self._made: dict[nn.Module, InferenceWeight | UnmergedLora] = {}
        self._factors: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}  # by layer, adapter, and kind of states
        self._stack = AdapterStack([])

    def __deepcopy__(self, memo: Any) -> InferenceWeights:
        return InferenceWeights()  # a copy of the model makes its own: packed weights can't be copied

    def clear(self) -> None:
        """Drop all."""
        self.drops += 1
        self._made, self._factors, self._stack = {}, {}, AdapterStack([])

    def set_sole(self, adapter: str | None) -> None:
        """Merge this adapter's factors from now on, and no other's beside the model's own."""
        if adapter != self.sole:
            self.sole = adapter
            self._made = {layer: made for layer, made in list(self._made.items()) if made.adapter == OWN}

    def drop_outdated(self) -> None:
        """Drop those whose layer's parts are others than they were made of, or have been edited."""
        made_now = list(self._made.items())
        outdated = [layer for layer, made in made_now if made.identity != _identity(layer, made.adapter)]
        for layer in outdated:
            self._made.pop(layer, None)  # another thread may have been faster
        self._stack.drop_outdated()

    def drop_adapter(self, adapter: str) -> None:
        """Drop what was made of an added adapter."""
        if adapter == self.sole:
            self.set_sole(None)
        self._factors = {key: factors for key, factors in self._factors.items() if key[1] != adapter}
        if adapter in self._stack.adapters:
            self._stack = AdapterStack([])

    def packed(self, layer: Any) -> InferenceWeight | None:
        """A linear layer's weight in oneDNN's layout, None where it has no such form."""
        made = self._made.get(layer)
        if made is None and private.can_prepack(layer.weight):
            made = self._made[layer] = InferenceWeight(layer.weight, layer, _parts(layer))
        assert not isinstance(made, UnmergedLora), "of LoRA layers alone"
        return made

    def adapted_product(self, layer: Any, x: Tensor, adapter: str = OWN) -> Tensor:
        """``x Wᵀ + bias + scale · x Aᵀ Bᵀ`` of a LoRA layer by the model's own adapter, or the only one beside it."""
        made = self._made.get(layer)
        if made is None:
            make = UnmergedLora if is_int4(layer.base_layer) else _merged
            made = self._made[layer] = make(layer, adapter)
        if isinstance(made, UnmergedLora):
            return made.add_product(x, layer.base_layer(x))
        return made.product(x, layer.base_layer.bias)

    def factors(self, layer: Any, adapter: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """A (r, C) and ``scale · B`` (N, r) of an added adapter, in the number format of ``like``."""
        key = layer, adapter, *_kind(like)
        made = self._factors.get(key)
        if made is None:
            made = self._factors[key] = scaled_factors(layer, adapter, like)
        return made

    def stack(self, adapters: Collection[str | None]) -> AdapterStack:
        """The stacked factors of these adapters, and of others that were needed lately.

        They are made anew only where one is missing; the oldest that no row has are left out then.
        """
        needed, stack = set(adapters), self._stack
        if not needed <= set(stack.adapters):
            idle = [adapter for adapter in stack.adapters if adapter not in needed]
            more = idle[max(0, len(idle) + len(needed) - STACKED_ADAPTERS) :]
            stack = self._stack = AdapterStack([*more, *sorted(needed, key=str)])
        return stack


def _merged(layer: Any, adapter: str) -> InferenceWeight:
    """A LoRA layer's weight with an adapter added to it."""
    weight_NC, a_rC, b_Nr = _parts(layer, adapter)
    merged_NC = weight_NC.float() + layer.scaling[adapter] * (b_Nr.float() @ a_rC.float())
    return InferenceWeight(merged_NC.to(weight_NC.dtype), layer, (weight_NC, a_rC, b_Nr), adapter)


def own_adapter(layer: Any) -> str | None:
    """The name of the model's own adapter in a LoRA layer; None where it uses none.

    Raises `ValueError` where it uses several at once.
    """
    names: list[str] = [] if layer.disable_adapters else layer.active_adapters
    if names not in ([], [OWN]):
        raise ValueError(f"the model uses {len(names)} adapters of its own at once, so no others can be added to rows")
    return names[0] if names else None


def scaled_factors(layer: Any, adapter: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, C) and ``scale · B`` (N, r) of a LoRA layer's adapter, in the number format of ``like``."""
    a_rC, b_Nr = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return a_rC.to(like.dtype), (layer.scaling[adapter] * b_Nr).to(like.dtype)


def _kind(states: Tensor) -> tuple[torch.dtype, torch.device]:
    return states.dtype, states.device


def _identity(layer: Any, adapter: str = OWN) -> list[Any]:
    """What changes when a layer's parts, or the scale of its adapter, are others."""
    return [*map(tensor_identity, _parts(layer, adapter)), getattr(layer, "scaling", {}).get(adapter)]


def _own_identity(layer: Any) -> list[Any]:
    """The same of the model's own adapter, and whether the layer uses it."""
    return [own_adapter(layer), *_identity(layer)]


def _parts(layer: Any, adapter: str = OWN) -> tuple[Tensor, ...]:
    """What a layer's inference weight is made of."""
    if isinstance(layer, nn.Linear):
        return (layer.weight,)
    return layer.base_layer.weight, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
