"""Faster forms, equal in value, of a backbone's linear layers, LoRA layers, RMS norms and last feed-forward part.

For the backward pass each form saves only what it needs, and it computes in the backbone's number format, though the
adapters' own weights stay float32. LoRA layers that read the same states compute their products together. For
inference, adapters are merged into a copy of their weight. A weight that few rows are multiplied with (as in decoding)
is kept in oneDNN's own layout: torch otherwise converts it for every product, which takes as long as the product.

Shapes: M rows of states, C input channels, N output channels, r rank of one adapter, R ranks of a group's adapters
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PACKED_MAX_ROWS = 256  # rows up to which a packed weight pays (tests/benchmarks/packed_weights.py)
MAX_NEEDED_SHARE = 0.9  # share of states up to which it pays to compute the last feed-forward part for them alone
LORA_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of layers that read the same states

_needed_places: Tensor | None = None  # (M,) flat positions of the last hidden states that are needed; None: all


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
            outputs.append(out_MN.view(*x.shape[:-1], -1))
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
            x_grad = x_grad_MC.view(*grads[0].shape[:-1], -1)
        a_grads = (low_grad_MR.T @ x_MC).float().split([low_Mr.shape[1] for low_Mr in low_rank])
        pairs = zip(flat_grads, low_rank, ctx.layers, strict=True)
        b_grads = [(grad_MN.T @ low_Mr).float().mul_(layer.scale) for grad_MN, low_Mr, layer in pairs]
        return x_grad, None, *a_grads, *b_grads


class FrozenRMSNorm(torch.autograd.Function):
    """A frozen RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467), ``scale · x / rms(x)``, which saves only x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Callable[[Tensor], Tensor], scale_C: Tensor, eps: float) -> Tensor:
        """Normalise states (..., C) by the model's own ``norm``."""
        ctx.save_for_backward(x, scale_C)
        ctx.eps = eps
        return norm(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradient of x: with n = x / rms, g' = scale · g, it is ``(g' - n · mean(g' n)) / rms``."""
        x, scale_C = ctx.saved_tensors
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_rms = (norm.square() / x.shape[-1] + ctx.eps).rsqrt().to(x.dtype)
        normed, scaled_grad = x * inverse_rms, grad * scale_C
        mean = torch.linalg.vecdot(scaled_grad, normed)[..., None] / x.shape[-1]
        return scaled_grad.addcmul_(normed, mean, value=-1).mul_(inverse_rms), None, None, None


def install(model: Any) -> None:
    """Replace the forward functions of a model's linear layers, PEFT's plain LoRA layers and frozen RMS norms.

    Layers of other kinds stay as they are.
    """
    lora_class: Any = ()
    if hasattr(model, "peft_config"):
        from peft.tuners.lora.layer import Linear as lora_class
    for module in model.modules():
        is_lora = isinstance(module, lora_class) and isinstance(module.base_layer, nn.Linear)
        is_lora = is_lora and not module.lora_variant
        if is_lora or type(module) is nn.Linear:
            module.inference_weight = None
            module.forward = MethodType(_lora_forward if is_lora else _linear_forward, module)
            if is_lora:
                module.lora_group = LoraGroup([module])
        elif type(module).__name__.endswith("RMSNorm"):
            weight = getattr(module, "weight", None)  # some norms have no scale
            if weight is not None and not weight.requires_grad:
                _install_norm(module)
    for module in model.modules():
        for names in LORA_GROUPS:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            if all(hasattr(layer, "lora_group") for layer in layers):
                group = LoraGroup(layers)
                for layer in layers:
                    layer.lora_group = group


def install_last_mlp(layer: Any, channels: int) -> None:
    """Let the feed-forward part of a model's last layer skip states that no one reads (`only_positions`).

    A part whose states (C) depend on other positions stays as it is.
    """
    mlp = getattr(layer, "mlp", None)
    if mlp is not None and _is_positionwise(mlp, channels):
        mlp.forward = MethodType(_needed_only_forward, mlp)


@contextmanager
def only_positions(needed: Tensor | None) -> Iterator[None]:
    """Inside this context, last hidden states need be right only where ``needed``, (B, T) or (N,); None: everywhere."""
    global _needed_places
    before, _needed_places = _needed_places, None
    if needed is not None:
        places = needed.flatten().nonzero()[:, 0]
        _needed_places = places if len(places) <= MAX_NEEDED_SHARE * needed.numel() else None
    try:
        yield
    finally:
        _needed_places = before


def _needed_only_forward(self: Any, x: Tensor) -> Tensor:
    forward: Callable[[Tensor], Tensor] = partial(type(self).forward, self)
    if _needed_places is None:
        return forward(x)
    x_MC = x.flatten(0, 1)
    needed_states = forward(x_MC.index_select(0, _needed_places)[None])[0]
    return torch.zeros_like(x_MC).index_copy(0, _needed_places, needed_states).view_as(x)


def _is_positionwise(mlp: Any, channels: int) -> bool:
    """Whether a feed-forward part computes each position by itself, tried on random states."""
    parameter = next(mlp.parameters())
    x_1TC = torch.randn(1, 3, channels, dtype=parameter.dtype, device=parameter.device)
    training = mlp.training
    try:
        with torch.no_grad(), torch.random.fork_rng():
            together, alone = mlp.eval()(x_1TC), mlp(x_1TC[:, 1:2])
            return bool((together[:, 1:2] - alone).abs().max() <= 0.03 * together.abs().max())
    except Exception:  # parts that take or return more than states raise whatever they raise
        return False
    finally:
        mlp.train(training)


def uninstall(model: Any) -> None:
    """Give every layer its own forward function back."""
    for module in model.modules():
        vars(module).pop("forward", None)


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if torch.is_grad_enabled():  # before any return: a fused optimizer's step does not change a factor's version
        self.inference_weight = None
    if args or kwargs or torch.is_autocast_enabled(x.device.type) or not _is_fusible(self):
        return type(self).forward(self, x, *args, **kwargs)
    if torch.is_grad_enabled():
        return self.lora_group(self, x)
    weight, a, b = self.base_layer.weight, self.lora_A["default"].weight, self.lora_B["default"].weight
    if self.inference_weight is None or not self.inference_weight.made_of(weight, a, b):
        merged = weight.float() + self.scaling["default"] * (b.float() @ a.float())
        self.inference_weight = InferenceWeight(merged.to(weight.dtype), weight, a, b)
    return self.inference_weight.product(x, self.base_layer.bias)


def _is_fusible(layer: Any) -> bool:
    """Whether a LoRA layer in its present state computes what `FusedLora` computes."""
    plain = not layer.disable_adapters and not layer.merged and layer.active_adapters == ["default"]
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
        self.input: Tensor | None = None
        self.outputs: dict[Any, Tensor] = {}  # of the layers that the model has not called yet

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """States (..., N) that one layer of the group makes of states (..., C)."""
        if x is not self.input or layer not in self.outputs:
            if layer is not self.layers[0] or not all(map(_is_fusible, self.layers)):
                return _fused_lora([layer], x)[0]
            if self.outputs:  # the other layers read something else in this model
                self.layers = self.layers[:1]
            self.input, self.outputs = x, dict(zip(self.layers, _fused_lora(self.layers, x), strict=True))
        out = self.outputs.pop(layer)
        if not self.outputs:
            self.input = None
        return out


def _linear_forward(self: Any, x: Tensor) -> Any:
    """A linear layer without adapters; only products of few rows are worth a second copy of its weight."""
    weight = self.weight
    if torch.is_grad_enabled():
        self.inference_weight = None
    elif x.numel() <= PACKED_MAX_ROWS * x.shape[-1] and x.dtype is weight.dtype:
        current = self.inference_weight is not None and self.inference_weight.made_of(weight)
        if not current and _can_prepack(weight):
            self.inference_weight, current = InferenceWeight(weight, weight), True
        if current:
            return self.inference_weight.product(x, self.bias)
    return nn.functional.linear(x, weight, self.bias)


class InferenceWeight:
    """A weight (N, C) for inference, packed if that helps; outdated once its parts change or training goes on."""

    def __init__(self, weight: Tensor, *parts: Tensor) -> None:
        self.versions = [(part.data_ptr(), part._version) for part in parts]
        self.packed = _can_prepack(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_MAX_ROWS) if self.packed else weight

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the layer makes its own: a packed weight can't be copied

    def made_of(self, *parts: Tensor) -> bool:
        """Whether it was made of these parts, as they are now."""
        return self.versions == [(part.data_ptr(), part._version) for part in parts]

    def product(self, x: Tensor, bias: Tensor | None) -> Any:
        """``x Wᵀ + bias``."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return nn.functional.linear(x, self.weight, bias)


def _can_prepack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies in the weight's number format on this processor."""
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        return False
    available: Callable[[], bool] = torch.backends.mkldnn.is_available
    return available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _install_norm(module: Any) -> None:
    """Use `FrozenRMSNorm` where its gradient is that of the module's own formula, tried on random states."""
    norm = module.forward
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    with torch.no_grad():
        scale_C = norm(torch.ones_like(module.weight)[None])[0]
    x = torch.randn(4, len(scale_C), dtype=module.weight.dtype, device=scale_C.device, requires_grad=True)
    apply: Callable[..., Tensor] = FrozenRMSNorm.apply
    if eps is None or not _same_gradient(norm(x), apply(x, norm, scale_C, eps), x):
        return
    module.register_buffer("rms_scale", scale_C, persistent=False)  # moves with the module
    module.rms_eps = eps
    module.forward = MethodType(_norm_forward, module)  # not a closure: a copy of the model must use its own weights


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    norm: Callable[[Tensor], Tensor] = partial(type(self).forward, self)
    apply: Callable[..., Tensor] = FrozenRMSNorm.apply
    return apply(x, norm, self.rms_scale, self.rms_eps) if x.requires_grad else norm(x)


def _same_gradient(model_output: Tensor, fast_output: Tensor, x: Tensor) -> bool:
    direction = torch.randn_like(model_output)
    (expected,) = torch.autograd.grad(model_output, x, direction)
    (got,) = torch.autograd.grad(fast_output, x, direction)
    return bool((got - expected).abs().max() <= 0.03 * expected.abs().max())
