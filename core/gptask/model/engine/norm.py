"""RMS norms that do not learn, with a backward pass that saves only their input.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptask.model.engine.forward_registry import original_forward, replace_forward
from gptask.model.engine.inference_weights import tensor_identity


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
        grad = grad.to(x.dtype)  # autocast may have computed in another number format
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_rms = (norm.square() / x.shape[-1] + ctx.eps).rsqrt().to(x.dtype)
        normed, scaled_grad = x * inverse_rms, grad * scale_C
        mean = torch.linalg.vecdot(scaled_grad, normed)[..., None] / x.shape[-1]
        return scaled_grad.addcmul_(normed, mean, value=-1).mul_(inverse_rms), None, None, None


class NormForward:
    """The forward function of one frozen norm; its scale is taken again where its weight has changed."""

    def __init__(self, module: Any, eps: float) -> None:
        self.eps = eps
        self._take_scale(module)

    def _take_scale(self, module: Any) -> None:
        self.identity: tuple[int, int] | None = tensor_identity(module.weight)
        self.source = module.weight.detach()  # while it lives, no other tensor gets its address
        with torch.no_grad():
            self.scale_C = original_forward(module)(torch.ones_like(module.weight)[None])[0]

    def __call__(self, module: Any, x: Tensor) -> Tensor:
        """Normalise states (..., C)."""
        if not x.requires_grad or module.weight.requires_grad:
            out: Tensor = original_forward(module)(x)
            return out
        return self.fast(module, x)

    def fast(self, module: Any, x: Tensor) -> Tensor:
        """The same by `FrozenRMSNorm`, which has no gradient of the scale."""
        if self.identity != tensor_identity(module.weight):
            self._take_scale(module)
        apply: Callable[..., Tensor] = FrozenRMSNorm.apply
        return apply(x, original_forward(module), self.scale_C, self.eps)


def install(model: Any, training: bool = True) -> str | None:
    """Replace the forward functions of a model's RMS norms; return the reason where there is none that fits.

    In ``training``, norms that learn stay as they are.
    """
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    norms = [module for module in norms if getattr(module, "weight", None) is not None]  # some have no scale
    if not norms:
        return "the model has no RMS norms"
    frozen = [module for module in norms if not (training and module.weight.requires_grad)]
    if not frozen:
        return "the model's norms learn"
    forwards = [(module, _fitting_forward(module)) for module in frozen]
    installed = [replace_forward(module, forward, wraps=True) for module, forward in forwards if forward]
    return None if any(installed) else "the model's norms have a gradient of another form"


def _fitting_forward(module: Any) -> NormForward | None:
    """The replacement, where its gradient is that of the module's own formula, tried on random states."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is None:
        return None
    forward = NormForward(module, eps)
    generator = torch.Generator(module.weight.device).manual_seed(0)
    shape, options = (4, len(forward.scale_C)), {"dtype": module.weight.dtype, "device": module.weight.device}
    x = torch.randn(shape, generator=generator, **options).requires_grad_()
    direction = torch.randn(shape, generator=generator, **options)
    (expected,) = torch.autograd.grad(original_forward(module)(x), x, direction)
    (got,) = torch.autograd.grad(forward.fast(module, x), x, direction)
    return forward if (got - expected).abs().max() <= 0.03 * expected.abs().max() else None
