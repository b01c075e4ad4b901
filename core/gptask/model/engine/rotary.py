"""Rotary position embeddings whose backward pass is a rotation too: torch's own, of slices put together again, takes
three times as many passes over the states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NAME = "apply_rotary_pos_emb"  # what transformers' attention layers call


class Rotation(torch.autograd.Function):
    """``x cos + [-x₂, x₁] sin`` of the halves x₁, x₂ of every head (Su et al. 2021, "RoFormer", arXiv 2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated states (..., D), by ``cos`` and ``sin`` that broadcast to them."""
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _turned(x, cos, -first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of x: the transposed rotation."""
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _turned(grad, cos, second, -first), None, None


def _turned(x: Tensor, cos: Tensor, by_second: Tensor, by_first: Tensor) -> Tensor:
    out = x * cos
    for half, other, by in zip(out.chunk(2, -1), reversed(x.chunk(2, -1)), (by_second, by_first), strict=True):
        half.addcmul_(other, by)
    return out


def rotate(
    own: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, T, D), rotated by ``cos`` and ``sin`` (B, T, D); by the model's ``own`` function where no
    gradient is needed or it does something else (rotates a part of D, computes in another number format)."""
    other = args or kwargs or cos.shape[-1] != q.shape[-1] or cos.dtype is not q.dtype
    if other or not (q.requires_grad and k.requires_grad):
        return own(q, k, cos, sin, *args, **kwargs)
    cos, sin = cos[:, None], sin[:, None]
    return Rotation.apply(q, cos, sin), Rotation.apply(k, cos, sin)


def install(model: Any) -> None:
    """Give attention layers that rotate this way a copy of their forward function that calls `rotate`; the model's
    module, which other models use too, stays as it is."""
    lean: dict[Any, FunctionType | None] = {}
    for module in model.modules():
        own = type(module).forward
        if "forward" in vars(module):
            continue
        if own not in lean:
            lean[own] = _leaner(own)
        if forward := lean[own]:
            module.forward = MethodType(forward, module)


def _leaner(own: Any) -> FunctionType | None:
    """The copy of a forward function, if it rotates this way."""
    if not isinstance(own, FunctionType) or NAME not in own.__code__.co_names or not _rotates(own.__globals__[NAME]):
        return None
    names = own.__globals__ | {NAME: partial(rotate, own.__globals__[NAME])}
    copy = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    return copy


def _rotates(own: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Whether a model's function is this rotation, tried on random states."""
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (torch.randn(1, *size, 4, generator=generator) for size in [(2, 3), (1, 3), (3,), (3,)])
    results = []
    for form in (own, partial(rotate, own)):
        inputs = q.clone().requires_grad_(), k.clone().requires_grad_()
        try:
            outs = form(*inputs, cos, sin)
            slopes = torch.autograd.grad([(out * out).sum() for out in outs], inputs)
        except Exception:  # whatever functions raise that take something else
            return False
        results.append([*outs, *slopes])
    return all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(*results, strict=True))
