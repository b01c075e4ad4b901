"""Equal-valued, leaner forms of what a backbone computes most: linear layers, LoRA layers, RMS norms and the loss of a
frozen vocabulary projection.

For the backward pass each keeps only what it needs, and computes in the backbone's number format with adapters whose
own weights stay float32; adapters of layers that read the same states read them together. For scoring, adapters are
merged into a copy of their weight, and a weight that few rows are multiplied with (as when decoding) is kept in
oneDNN's own layout, which torch otherwise makes anew for every product and which takes as long as the product itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PACKED_MAX_ROWS = 256  # rows up to which a packed weight pays (tests/benchmarks/packed.py)
MAX_NEEDED_SHARE = 0.9  # share of states up to which it pays to compute the last feed-forward part for them alone
LORA_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of layers that read the same states

_places: Tensor | None = None  # (M,) of the states that are read


class FrozenLinear(NamedTuple):
    """What of an adapted layer does not learn: weight (N, C), bias (N,), and the scale of its factors."""

    weight: Tensor
    bias: Tensor | None
    scale: float


class FusedLora(torch.autograd.Function):
    """``x Wᵀ + bias + scale · x Aᵀ Bᵀ`` (Hu et al. 2021, arXiv 2106.09685) of the layers that read x, with W (N, C)
    frozen, A (r, C), B (N, r); x is read once for all A, and its gradient summed as it is made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[FrozenLinear], *factors: Tensor) -> tuple[Tensor, ...]:
        """States (..., N) of each layer from states (..., C); ``factors``: every A, then every B."""
        rows = x.reshape(-1, x.shape[-1])  # (M, C)
        downs, ups = factors[: len(layers)], factors[len(layers) :]
        a = torch.cat(downs).to(x.dtype)  # (R, C)
        bs = [(up * layer.scale).to(x.dtype) for up, layer in zip(ups, layers, strict=True)]
        lows = (rows @ a.T).split([len(down) for down in downs], 1)  # (M, r)
        ctx.save_for_backward(rows, a, *lows, *bs)
        ctx.layers = layers
        outs = []
        for layer, low, b in zip(layers, lows, bs, strict=True):
            out = nn.functional.linear(rows, layer.weight, layer.bias).addmm_(low, b.T)
            outs.append(out.view(*x.shape[:-1], -1))
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of x, of every A and of every B."""
        rows, a, *rest = ctx.saved_tensors
        lows, bs = rest[: len(grads)], rest[len(grads) :]
        flats = [grad.reshape(-1, grad.shape[-1]) for grad in grads]  # (M, N)
        inner = torch.cat([flat @ b for flat, b in zip(flats, bs, strict=True)], 1)  # (M, R)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = inner @ a
            for flat, layer in zip(flats, ctx.layers, strict=True):
                to_x.addmm_(flat, layer.weight)
            to_x = to_x.view(*grads[0].shape[:-1], -1)
        to_a = (inner.T @ rows).float().split([low.shape[1] for low in lows])
        pairs = zip(flats, lows, ctx.layers, strict=True)
        to_b = [(flat.T @ low).float().mul_(layer.scale) for flat, low, layer in pairs]
        return to_x, None, *to_a, *to_b


class FrozenRMSNorm(torch.autograd.Function):
    """A frozen RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467), ``scale · x / rms(x)``; only x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Any, scale: Tensor, eps: float) -> Tensor:
        """What the model's own norm makes of states (..., C)."""
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        return norm(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of x: with n = x / rms, g' = scale · g, it is ``(g' - n · mean(g' n)) / rms``."""
        x, scale = ctx.saved_tensors
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (norm.square() / x.shape[-1] + ctx.eps).rsqrt().to(x.dtype)
        normed, grad = x * inverse, grad * scale
        along = torch.linalg.vecdot(grad, normed)[..., None] / x.shape[-1]
        return grad.addcmul_(normed, along, value=-1).mul_(inverse), None, None, None


def install(model: Any) -> None:
    """Give a model's linear layers, PEFT's plain LoRA layers and frozen RMS norms their lean forms; what is different
    stays as it is."""
    adapted: Any = ()
    if hasattr(model, "peft_config"):
        from peft.tuners.lora.layer import Linear as adapted
    for module in model.modules():
        lora = isinstance(module, adapted) and isinstance(module.base_layer, nn.Linear) and not module.lora_variant
        if lora or type(module) is nn.Linear:
            module.lean_kept = None
            module.forward = MethodType(_adapted if lora else _plain, module)
            if lora:
                module.lean_alike = LoraGroup([module])
        elif type(module).__name__.endswith("RMSNorm"):
            weight = getattr(module, "weight", None)  # some norms have no scale
            if weight is not None and not weight.requires_grad:
                _lean_norm(module)
    for module in model.modules():
        for names in LORA_GROUPS:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            if all(hasattr(layer, "lean_alike") for layer in layers):
                alike = LoraGroup(layers)
                for layer in layers:
                    layer.lean_alike = alike


def install_last(layer: Any, channels: int) -> None:
    """Let the feed-forward part of a model's last layer leave out states that no one reads (`only_positions`), if it computes
    each state (C) by itself."""
    part = getattr(layer, "mlp", None)
    if part is not None and _by_position(part, channels):
        part.forward = MethodType(_where_read, part)


@contextmanager
def only_positions(needed: Tensor | None) -> Iterator[None]:
    """Within, last hidden states need be right only where they are ``needed``, (B, T) or (N,); None: everywhere."""
    global _places
    before, _places = _places, None
    if needed is not None:
        places = needed.flatten().nonzero()[:, 0]
        _places = places if len(places) <= MAX_NEEDED_SHARE * needed.numel() else None
    try:
        yield
    finally:
        _places = before


def _where_read(self: Any, x: Tensor) -> Tensor:
    own = partial(type(self).forward, self)
    if _places is None:
        return own(x)
    states = x.flatten(0, 1)
    read = own(states.index_select(0, _places)[None])[0]
    return torch.zeros_like(states).index_copy(0, _places, read).view_as(x)


def _by_position(part: Any, channels: int) -> bool:
    some = next(part.parameters())
    x = torch.randn(1, 3, channels, dtype=some.dtype, device=some.device)
    training = part.training
    try:
        with torch.no_grad(), torch.random.fork_rng():
            whole, one = part.eval()(x), part(x[:, 1:2])
            return bool((whole[:, 1:2] - one).abs().max() <= 0.03 * whole.abs().max())
    except Exception:  # whatever parts raise that take or return more than states
        return False
    finally:
        part.train(training)


def remove(model: Any) -> None:
    """Give every layer its own form back."""
    for module in model.modules():
        vars(module).pop("forward", None)


def _adapted(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if torch.is_grad_enabled():  # before any way out: a fused optimizer's step is not seen in a factor's version
        self.lean_kept = None
    if args or kwargs or torch.is_autocast_enabled(x.device.type) or not _lean(self):
        return type(self).forward(self, x, *args, **kwargs)
    if torch.is_grad_enabled():
        return self.lean_alike(self, x)
    weight, a, b = self.base_layer.weight, self.lora_A["default"].weight, self.lora_B["default"].weight
    kept = self.lean_kept
    if kept is None or not kept.made_of(weight, a, b):
        merged = weight.float() + self.scaling["default"] * (b.float() @ a.float())
        self.lean_kept = kept = InferenceWeight(merged.to(weight.dtype), weight, a, b)
    return kept.product(x, self.base_layer.bias)


def _lean(layer: Any) -> bool:
    """Whether a LoRA layer does now what `FusedLora` does."""
    plain = not layer.disable_adapters and not layer.merged and layer.active_adapters == ["default"]
    return plain and (not layer.training or isinstance(layer.lora_dropout["default"], nn.Identity))


def _low_rank(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    frozen = [
        FrozenLinear(layer.base_layer.weight, layer.base_layer.bias, layer.scaling["default"]) for layer in layers
    ]
    factors = [getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B") for layer in layers]
    return FusedLora.apply(x, frozen, *factors)


class LoraGroup:
    """LoRA layers (one, or more) to which a model gives the same states in turn: the first computes for all."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        self.read: Tensor | None = None
        self.outs: dict[Any, Tensor] = {}  # of the layers that were not asked yet

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """States (..., N) that one layer makes of states (..., C)."""
        if x is not self.read or layer not in self.outs:
            if layer is not self.layers[0] or not all(map(_lean, self.layers)):
                return _low_rank([layer], x)[0]
            if self.outs:  # the others read something else in this model
                self.layers = self.layers[:1]
            self.read, self.outs = x, dict(zip(self.layers, _low_rank(self.layers, x), strict=True))
        out = self.outs.pop(layer)
        if not self.outs:
            self.read = None
        return out


def _plain(self: Any, x: Tensor) -> Tensor:
    """A linear layer without adapters; only products of few rows are worth a second copy of its weight."""
    weight, kept = self.weight, self.lean_kept
    if torch.is_grad_enabled():
        self.lean_kept = None
    elif x.numel() <= PACKED_MAX_ROWS * x.shape[-1] and x.dtype is weight.dtype:
        if kept is None or not kept.made_of(weight):
            if not _packable(weight):
                return nn.functional.linear(x, weight, self.bias)
            self.lean_kept = kept = InferenceWeight(weight, weight)
        return kept.product(x, self.bias)
    return nn.functional.linear(x, weight, self.bias)


class InferenceWeight:
    """A weight (N, C) for scoring, packed if that helps, until what it was made of changes or training goes on."""

    def __init__(self, weight: Tensor, *parts: Tensor) -> None:
        self.state = [(part.data_ptr(), part._version) for part in parts]
        self.packed = _packable(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_MAX_ROWS) if self.packed else weight

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the layer makes its own: a packed one can't be copied

    def made_of(self, *parts: Tensor) -> bool:
        """Whether these have not changed since."""
        return self.state == [(part.data_ptr(), part._version) for part in parts]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x Mᵀ + bias``."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return nn.functional.linear(x, self.weight, bias)


def _packable(weight: Tensor) -> bool:
    """Whether oneDNN multiplies in the weight's number format on this processor."""
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        return False
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _lean_norm(module: Any) -> None:
    """Swap in `FrozenRMSNorm` where its gradient is that of the module's own formula, tried on random states."""
    own = module.forward
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    with torch.no_grad():
        scale = own(torch.ones_like(module.weight)[None])[0]
    x = torch.randn(4, len(scale), dtype=module.weight.dtype, device=scale.device, requires_grad=True)
    if eps is None or not _same_gradient(own(x), FrozenRMSNorm.apply(x, own, scale, eps), x):
        return

    module.register_buffer("lean_scale", scale, persistent=False)  # moves with the module
    module.lean_eps = eps
    module.forward = MethodType(_normed, module)  # not a closure: a copy of the model must use its own weights


def _normed(self: Any, x: Tensor) -> Tensor:
    own = partial(type(self).forward, self)
    return FrozenRMSNorm.apply(x, own, self.lean_scale, self.lean_eps) if x.requires_grad else own(x)


def _same_gradient(own: Tensor, lean: Tensor, x: Tensor) -> bool:
    along = torch.randn_like(own)
    (expected,) = torch.autograd.grad(own, x, along)
    (got,) = torch.autograd.grad(lean, x, along)
    return bool((got - expected).abs().max() <= 0.03 * expected.abs().max())
