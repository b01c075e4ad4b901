"""The names of torch, PEFT and transformers that have no public form, each behind a check that it is there.

Where a name is missing, the function says so or computes the same by public means, so that a new version of a library
makes a run slower and never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def attention_implementation(model: Any) -> str | None:
    """The name of a transformers model's attention function; transformers has a public setter and no getter."""
    name: str | None = getattr(model.config, "_attn_implementation", None)
    return name


def auto_model_classes(auto_class: Any) -> Any:
    """The model class of each config class that a transformers auto class knows; empty where it does not tell."""
    return getattr(auto_class, "_model_mapping", {})


def cpu_computes_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; torch has no public test for AVX512-BF16 and AMX."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test() for test in tests if test)


def tensor_version(tensor: Tensor) -> int:
    """A counter of a tensor's in-place changes; always 0 for tensors that have none, made in inference mode."""
    return 0 if tensor.is_inference() else int(tensor._version)


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient ``P (dP - Σ dP P)`` of scores whose softmax over the last dimension is ``weights`` (..., S)."""
    if fused := getattr(torch, "_softmax_backward_data", None):
        fused_grad: Tensor = fused(grad, weights, -1, weights.dtype)
        return fused_grad
    return weights * (grad - (grad * weights).sum(-1, keepdim=True))


def can_prepack(weight: Tensor) -> bool:
    """Whether oneDNN keeps a weight in its own layout, and multiplies in its number format on this processor."""
    available: Callable[[], bool] = torch.backends.mkldnn.is_available  # torch leaves it untyped
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16 or not available():
        return False
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepack(weight: Tensor, rows: int) -> Tensor:
    """A weight (N, C) in oneDNN's layout for products with up to ``rows`` rows; only where `can_prepack` says so."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def prepacked_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias`` with a weight of `prepack`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


def has_int4_kernel() -> bool:
    """Whether torch multiplies with int4 weights on a CPU."""
    names = ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu")
    return all(hasattr(torch.ops.aten, name) for name in names)


def int4_pack(codes: Tensor) -> Tensor:
    """Codes (N, C) of 0 to 15 in the kernel's layout; raises `RuntimeError` for a shape that it does not take."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)  # the second is for GPUs alone
    return packed


def int4_linear(x: Tensor, codes: Tensor, group: int, scales_and_zeros: Tensor) -> Tensor:
    """``x Wᵀ`` (M, N) with ``W = scale · (code - 8) + zero``; only where `has_int4_kernel` says so."""
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, group, scales_and_zeros)
    return product
