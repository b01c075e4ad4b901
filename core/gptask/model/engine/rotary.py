"""Rotary position embeddings whose backward pass is a rotation too.

Autograd's backward pass of the models' own function, which concatenates slices, takes three times as many passes over
the states.

Shapes: B rows, T positions, H heads, D head channels; cos and sin are (B, 1, T, D) inside of `Rotation`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptask.model.engine.forward_registry import replace_forward

FUNCTION_NAME = "apply_rotary_pos_emb"  # what transformers' attention layers call


class Rotation(torch.autograd.Function):
    """``x cos + [-x₂, x₁] sin`` of the halves x₁, x₂ of every head (Su et al. 2021, "RoFormer", arXiv 2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x_BHTD: Tensor, cos_B1TD: Tensor, sin_B1TD: Tensor) -> Tensor:
        """Rotated states (B, H, T, D)."""
        ctx.save_for_backward(cos_B1TD, sin_B1TD)
        first_sin, second_sin = sin_B1TD.chunk(2, -1)
        return _rotated(x_BHTD, cos_B1TD, -first_sin, second_sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTD: Tensor) -> Any:
        """Gradient of x, by the transposed rotation."""
        cos_B1TD, sin_B1TD = ctx.saved_tensors
        first_sin, second_sin = sin_B1TD.chunk(2, -1)
        return _rotated(grad_BHTD, cos_B1TD, second_sin, -first_sin), None, None


def _rotated(x_BHTD: Tensor, cos_B1TD: Tensor, second_to_first: Tensor, first_to_second: Tensor) -> Tensor:
    """``x cos``, and to each half of it the other half of x times a factor (B, 1, T, D/2)."""
    out_BHTD = x_BHTD * cos_B1TD
    out_halves, other_halves = out_BHTD.chunk(2, -1), reversed(x_BHTD.chunk(2, -1))
    for out, other, factor in zip(out_halves, other_halves, (second_to_first, first_to_second), strict=True):
        out.addcmul_(other, factor)
    return out_BHTD


def rotate(
    model_function: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return queries and keys (B, H, T, D) rotated by ``cos`` and ``sin`` (B, T, D).

    The model's own function does it where no gradient is needed, or where the call is a different one: it rotates a
    part of D, computes in another number format or has further arguments.
    """
    differs = args or kwargs or cos.shape[-1] != q.shape[-1] or cos.dtype is not q.dtype
    if differs or not (q.requires_grad and k.requires_grad):
        return model_function(q, k, cos, sin, *args, **kwargs)
    apply: Callable[..., Tensor] = Rotation.apply
    cos_B1TD, sin_B1TD = cos[:, None], sin[:, None]
    return apply(q, cos_B1TD, sin_B1TD), apply(k, cos_B1TD, sin_B1TD)


def install(model: Any) -> str | None:
    """Give the attention layers that rotate this way a copy of their forward function that calls `rotate`.

    The transformers module, which other models use too, stays as it is. Returns the reason where no layer gets one.
    """
    functions: set[Any] = {type(module).forward for module in model.modules()}
    copies = {function: _copy_with_rotate(function) for function in functions}
    pairs = ((module, copies[type(module).forward]) for module in model.modules())
    installed = [replace_forward(module, copy) for module, copy in pairs if copy]
    return None if any(installed) else "the model has no rotary positions of the common form"


def _copy_with_rotate(forward: Any) -> FunctionType | None:
    """Copy a forward function so that it calls `rotate`; None if it rotates in another way or not at all."""
    if not isinstance(forward, FunctionType) or FUNCTION_NAME not in forward.__code__.co_names:
        return None
    model_function = forward.__globals__[FUNCTION_NAME]
    if not _is_standard_rotation(model_function):
        return None
    names = forward.__globals__ | {FUNCTION_NAME: partial(rotate, model_function)}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _is_standard_rotation(model_function: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Whether a model's function computes this rotation, tried on random states."""
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (torch.randn(1, *size, 4, generator=generator) for size in [(2, 3), (1, 3), (3,), (3,)])
    results = []
    for function in (model_function, partial(rotate, model_function)):
        inputs = q.clone().requires_grad_(), k.clone().requires_grad_()
        outputs = function(*inputs, cos, sin)
        gradients = torch.autograd.grad([(out * out).sum() for out in outputs], inputs)
        results.append([*outputs, *gradients])
    return all(torch.allclose(expected, got, atol=1e-5) for expected, got in zip(*results, strict=True))
