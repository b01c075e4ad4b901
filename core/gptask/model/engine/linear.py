"""Faster forms, equal in value, of a backbone's linear layers and LoRA layers.

For the backward pass each form saves only what it needs, and it computes in the backbone's number format, though the
adapters' own weights stay float32. LoRA layers that read the same states compute their products together. In
inference they multiply with the weights of `inference_weights`.

Shapes: M rows of states, C input channels, N output channels, r rank of one adapter, R ranks of a group's adapters
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from gptask.model.engine.forward_registry import original_forward, replace_forward, replaced_by
from gptask.model.engine.forward_state import ForwardState, current_state
from gptask.model.engine.inference_weights import PACKED_MAX_ROWS, scaled_factors
from gptask.model.engine.int4 import int4_weight, is_int4

LORA_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of layers that read the same states


class FrozenLinear(NamedTuple):
    """The frozen part of an adapted layer, and the scale of its adapter."""

    weight_NC: Tensor
    bias_N: Tensor | None
    scale: float


class FusedLora(torch.autograd.Function):
    """``x Wᵀ + bias + scale · x Aᵀ Bᵀ`` (Hu et al. 2021, arXiv 2106.09685) of all layers that read x.

    W (N, C) is frozen; A (r, C) and B (N, r) are the adapter. x is read once for all A, and its gradient is summed in
    place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[FrozenLinear], *factors: Tensor) -> tuple[Tensor, ...]:
        """States (..., N) of each layer from states (..., C); ``factors``: every A, then every B."""
        x_MC = x.reshape(-1, x.shape[-1])
        all_a, all_b = factors[: len(layers)], factors[len(layers) :]
        a_RC = torch.cat(all_a).to(x.dtype)
        scaled_b = [(b_Nr * layer.scale).to(x.dtype) for b_Nr, layer in zip(all_b, layers, strict=True)]
        low_rank = torch.split(x_MC @ a_RC.T, [len(a_rC) for a_rC in all_a], 1)
        ctx.save_for_backward(x_MC, a_RC, *low_rank, *scaled_b)
        ctx.layers = layers
        outputs = []
        for layer, low_Mr, b_Nr in zip(layers, low_rank, scaled_b, strict=True):
            out_MN = nn.functional.linear(x_MC, layer.weight_NC, layer.bias_N).addmm_(low_Mr, b_Nr.T)
            outputs.append(out_MN.view(*x.shape[:-1], out_MN.shape[-1]))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of x, of every A and of every B."""
        x_MC, a_RC, *saved = ctx.saved_tensors
        low_rank, scaled_b = saved[: len(grads)], saved[len(grads) :]
        flat_grads = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        low_grad_MR = torch.cat([grad_MN @ b_Nr for grad_MN, b_Nr in zip(flat_grads, scaled_b, strict=True)], 1)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad_MC = low_grad_MR @ a_RC
            for grad_MN, layer in zip(flat_grads, ctx.layers, strict=True):
                x_grad_MC.addmm_(grad_MN, layer.weight_NC)
            x_grad = x_grad_MC.view(*grads[0].shape[:-1], x_grad_MC.shape[-1])
        a_grads = (low_grad_MR.T @ x_MC).float().split([low_Mr.shape[1] for low_Mr in low_rank])
        pairs = zip(flat_grads, low_rank, ctx.layers, strict=True)
        b_grads = [(grad_MN.T @ low_Mr).float().mul_(layer.scale) for grad_MN, low_Mr, layer in pairs]
        return x_grad, None, *a_grads, *b_grads


def install(model: Any) -> str | None:
    """Replace the forward functions of a model's linear layers and of PEFT's plain LoRA layers.

    Layers of other kinds stay as they are. Returns the reason where no layer is replaced.
    """
    lora_class: Any = ()
    if hasattr(model, "peft_config"):
        from peft.tuners.lora.layer import Linear as lora_class
    installed = 0
    groups: dict[nn.Module, LoraGroup] = {}
    for module in model.modules():
        for names in LORA_GROUPS:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            if all(_is_plain_lora(layer, lora_class) for layer in layers):
                groups |= dict.fromkeys(layers, LoraGroup(layers))
        if _is_plain_lora(module, lora_class):
            installed += replace_forward(module, LoraForward(groups.get(module) or LoraGroup([module])))
        elif type(module) is nn.Linear:
            installed += replace_forward(module, linear_forward)
        elif type(module) is Conv1D and is_int4(module):
            installed += replace_forward(module, int4_conv1d_forward)
    return None if installed else "the model has no plain linear layers"


def computes_adapters(model: Any) -> bool:
    """Whether every layer of a model that has adapters computes them here."""
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    return all(isinstance(replaced_by(module), LoraForward) for module in adapted)


def _is_plain_lora(module: Any, lora_class: Any) -> bool:
    plain = isinstance(module, lora_class) and isinstance(module.base_layer, nn.Linear) and not module.lora_variant
    return plain and all(factor.bias is None for factor in module.lora_B.values())


def linear_forward(layer: Any, x: Tensor) -> Tensor:
    """A linear layer without adapters; only products of few rows are worth a second copy of its weight."""
    state = current_state()
    if state and state.inference_weights and x.dtype is layer.weight.dtype:
        if int4 := int4_weight(layer, x):
            return int4.product(x, layer.bias)
        few_rows = x.numel() <= PACKED_MAX_ROWS * x.shape[-1]
        if few_rows and (packed := state.inference_weights.packed(layer)):
            product: Tensor = packed.product(x, layer.bias)
            return product
    return nn.functional.linear(x, layer.weight, layer.bias)


def int4_conv1d_forward(layer: Any, x: Tensor) -> Tensor:
    """A linear layer of GPT-2, whose weight is transposed, with an int4 weight."""
    state = current_state()
    if state and state.inference_weights and (int4 := int4_weight(layer, x)):
        return int4.product(x, layer.bias)
    product: Tensor = original_forward(layer)(x)
    return product


class LoraForward:
    """The forward function of a LoRA layer, which belongs to a group of layers that read the same states."""

    def __init__(self, group: LoraGroup) -> None:
        self.group = group

    def __call__(self, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """States (..., N) of states (..., C)."""
        state = current_state()
        if state and state.row_adapters is not None:
            _refuse_merged(layer)
            base, low_rank = layer.base_layer(x), state.row_adapters.product(layer, x)
            return base if low_rank is None else base + low_rank
        if state and state.adapter is not None:
            return _with_added_adapter(layer, x, state.adapter, state.inference_weights)
        autocast = torch.is_autocast_enabled(x.device.type)
        if state is None or args or kwargs or autocast or not _is_fusible(layer):
            return original_forward(layer)(x, *args, **kwargs)
        if state.inference_weights is None:
            return self.group(layer, x, state)
        product: Tensor = state.inference_weights.adapted_product(layer, x)
        return product


def _with_added_adapter(layer: Any, x: Tensor, adapter: str, weights: Any) -> Tensor:
    """``x Wᵀ + bias + scale · x Aᵀ Bᵀ`` by an adapter beside the model's own; it is merged if it is the only one."""
    _refuse_merged(layer)
    if weights and weights.sole == adapter and adapter in layer.lora_A and x.dtype is layer.base_layer.weight.dtype:
        product: Tensor = weights.adapted_product(layer, x, adapter)
        return product
    base: Tensor = layer.base_layer(x)
    if adapter not in layer.lora_A:
        return base
    a_rC, b_Nr = weights.factors(layer, adapter, x) if weights else scaled_factors(layer, adapter, x)
    return base + (x @ a_rC.T) @ b_Nr.T


def _refuse_merged(layer: Any) -> None:
    if layer.merged:
        raise RuntimeError("the model's own adapter is merged into its weights: unmerge it before adding others")


def _is_fusible(layer: Any) -> bool:
    """Whether a LoRA layer in its present state computes what `FusedLora` computes."""
    plain = not layer.disable_adapters and not layer.merged and layer.active_adapters == ["default"]
    plain = plain and "default" in layer.lora_A
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in layer.base_layer.parameters()):
        return False  # a weight that learns beside its adapter
    return plain and (not layer.training or isinstance(layer.lora_dropout["default"], nn.Identity))


def _fused_lora(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    frozen = [
        FrozenLinear(layer.base_layer.weight, layer.base_layer.bias, layer.scaling["default"]) for layer in layers
    ]
    factors = [getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B") for layer in layers]
    apply: Callable[..., Sequence[Tensor]] = FusedLora.apply
    return apply(x, frozen, *factors)


class LoraGroup:
    """LoRA layers (one or more) to which a model gives the same states in turn: the first one computes for all."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers

    def __call__(self, layer: Any, x: Tensor, state: ForwardState) -> Tensor:
        """States (..., N) that one layer of the group makes of states (..., C)."""
        read, outputs = state.lora_outputs.get(self, (None, {}))  # outputs of layers that have not been called yet
        if x is not read or layer not in outputs:
            if state.lora_outputs.pop(self, None):  # the layers do not all read the same states in this model
                self.layers = self.layers[:1]
            if layer is not self.layers[0] or not all(map(_is_fusible, self.layers)):
                return _fused_lora([layer], x)[0]
            outputs = dict(zip(self.layers, _fused_lora(self.layers, x), strict=True))
            state.lora_outputs[self] = x, outputs
        out: Tensor = outputs.pop(layer)
        if not outputs:
            del state.lora_outputs[self]
        return out
