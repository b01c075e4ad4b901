"""Weights in int4: 16 values for each group of 32 input channels, for products with one or two rows.

Decoding reads all weights for every token, so weights of 5 bits are faster there. For more rows torch's kernel is
slower than a product in bfloat16, so a layer keeps both: the codes, and, in place of its weight, the values that these
stand for, rounded to bfloat16. So all passes compute with the same weights, by any engine and of any number of rows.

Shapes: M rows, N output channels, C input channels, G groups, K channels of a group.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gptask.errors import UserError, listing
from gptask.model.engine import private

GROUP = 32  # K, that of Q4_1
KERNEL_OUTPUTS = 16  # torch's kernel takes multiples of so many output channels
BYTES_PER_WEIGHT = 0.5 + 4 / GROUP
MAX_ROWS = 2  # rows up to which the kernel is faster than a product in bfloat16 (tests/benchmarks/int4.py)
LAST_CODE = 15
MIDDLE_CODE = 8  # the code that stands for a group's zero point


@dataclass(frozen=True)
class Int4Weight:
    """A weight (N, C) for torch's kernel: codes (N, C / 2), and scale and zero point of each group (G, N, 2)."""

    codes: Tensor
    scales_and_zeros: Tensor

    @property
    def nbytes(self) -> int:
        """The memory it takes."""
        return self.codes.nbytes + self.scales_and_zeros.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x Wᵀ + bias`` (..., N) of states (..., C)."""
        out_MN = private.int4_linear(x.reshape(-1, x.shape[-1]), self.codes, GROUP, self.scales_and_zeros)
        return (out_MN if bias is None else out_MN.add_(bias)).view(*x.shape[:-1], out_MN.shape[-1])


@dataclass(frozen=True)
class Quantization:
    """What of a model is in int4: how many layers, and how many linear layers are not, by reason."""

    layers: int
    kept: dict[str, int]
    nbytes: int  # of the codes, beside the weights in bfloat16
    perplexity_change: float | None = None  # on a short text, 0.01 is 1% more; None where it is no number

    def describe(self) -> dict[str, Any]:
        """The same for metrics.json."""
        counts = {"layers": self.layers, "kept": self.kept}
        return {"format": "int4", **counts, "perplexity_change": self.perplexity_change}

    def summary(self) -> str:
        """The layers for the log."""
        kept = "".join(f"; {count} stay bfloat16 ({reason})" for reason, count in self.kept.items())
        return f"int4: {self.layers} linear layers{kept}"


def int4_weight(layer: nn.Module, x: Tensor) -> Int4Weight | None:
    """The codes by which a layer multiplies states x (..., C); None for more rows and where it has none."""
    weight: Int4Weight | None = vars(layer).get("int4")
    fits = (
        weight is not None
        and x.numel() <= MAX_ROWS * x.shape[-1]
        and x.dtype is torch.bfloat16
        and x.device.type == "cpu"
    )
    return weight if fits else None


def is_int4(layer: nn.Module) -> bool:
    """Whether a layer's weight is one of int4."""
    return "int4" in vars(layer)


def quantized(weight_NC: Tensor) -> tuple[Int4Weight, Tensor]:
    """The codes of a weight, and the values (N, C) in bfloat16 that they stand for.

    The 16 values of a group lie evenly between its smallest and its largest weight: ``scale · (code - 8) + zero``, with
    scale and zero point in bfloat16. These are the values of Q4_1 (llama.cpp, ggml-quants.c), so that a weight that
    comes from it keeps its codes.
    """
    n, c = weight_NC.shape
    groups_NGK = weight_NC.float().view(n, c // GROUP, GROUP)
    low_NG1, high_NG1 = groups_NGK.aminmax(dim=-1, keepdim=True)
    scale_NG1 = ((high_NG1 - low_NG1) / LAST_CODE).bfloat16().float()
    zero_NG1 = (low_NG1 + MIDDLE_CODE * scale_NG1).bfloat16().float()
    scale_NG1[scale_NG1 == 0] = 1.0  # all weights of the group are its zero point
    codes_NGK = ((groups_NGK - zero_NG1) / scale_NG1).round_().add_(MIDDLE_CODE).clamp_(0, LAST_CODE)
    values_NC = ((codes_NGK - MIDDLE_CODE) * scale_NG1 + zero_NG1).view(n, c).bfloat16()
    pairs_GN2 = torch.cat([scale_NG1, zero_NG1], -1).transpose(0, 1).bfloat16().contiguous()
    return Int4Weight(private.int4_pack(codes_NGK.view(n, c).int()), pairs_GN2), values_NC


@torch.no_grad()
def quantize_layers(body: nn.Module) -> Quantization:
    """Quantize the linear layers of a decoder; those that the kernel can't multiply stay as they are.

    Raises `UserError` where it can multiply none, and where it computes something else than it should.
    """
    reasons: Counter[str] = Counter()
    weights = []
    for layer in body.modules():
        if type(layer) in (nn.Linear, Conv1D):
            if reason := _quantize(layer):
                reasons[reason] += 1
            else:
                weights.append(vars(layer)["int4"])
    if not weights:
        raise UserError(
            f"dtype=int4: {type(body).__name__} has no linear layer that can be int4 "
            f"({listing(reasons) or 'it has none at all'}); leave dtype out"
        )
    return Quantization(len(weights), dict(reasons), sum(weight.nbytes for weight in weights))


def _quantize(layer: Any) -> str | None:
    """Quantize a layer; return the reason where it stays as it is."""
    is_transposed = isinstance(layer, Conv1D)
    weight_NC = layer.weight.T if is_transposed else layer.weight
    outputs, inputs = weight_NC.shape
    if inputs % GROUP:
        return f"{GROUP} does not divide their {inputs:,} input channels"
    if outputs % KERNEL_OUTPUTS:
        return f"{KERNEL_OUTPUTS} does not divide their {outputs:,} output channels"
    int4, values_NC = quantized(weight_NC)
    _check(int4, values_NC)
    values = values_NC.T.contiguous() if is_transposed else values_NC
    layer.weight = nn.Parameter(values, requires_grad=False)
    layer.int4 = int4
    return None


def _check(int4: Int4Weight, values_NC: Tensor) -> None:
    """Raise `UserError` unless the kernel computes with the values."""
    x_1C = torch.linspace(-1, 1, values_NC.shape[1], dtype=torch.bfloat16)[None]
    got_1N, expected_1N = int4.product(x_1C, None).float(), x_1C.float() @ values_NC.float().T
    bound = 0.02 * (x_1C.float().abs() @ values_NC.float().abs().T).max()
    if not (got_1N - expected_1N).abs().max() <= bound:
        raise UserError(
            f"dtype=int4: torch {torch.__version__} computes wrong products on this processor: leave it out"
        )
