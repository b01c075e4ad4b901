"""Attention by plain matrix products, registered with transformers: at short lengths on a CPU faster than the fused
kernel, whose blocks are made for long ones (tests/benchmarks/attention.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from gptask.sharing import Layout

NAME = "gptask"
HIDDEN = -1e30  # added to a score that must not count; not -inf: a pad's own row may have nothing else
LONGEST = 512  # queries and keys up to which the products pay; beyond, their (T, S) scores fill memory
WIDE = 160  # queries and keys from which a softmax in the scores' own number format is the faster one

_layout: Layout | None = None


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend from queries (B, H, T, D) to keys and values (B, K, S, D); states (B, T, H, D) and no weights.

    Heads that share keys (grouped-query attention) go through one product, so keys are not repeated. The mask is None
    (causal) or one of numbers to add, (B, 1, T, S). What this does not do goes to the fused kernel.
    """
    if _layout:
        return _layout.attend(partial(_whole, module, options), query, key, value), None
    b, h, t, d = query.shape
    k, s = key.shape[1:3]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    odd = options.get("dropout") or options.get("position_bias") is not None
    masked = causal if attention_mask is None else attention_mask.is_floating_point()
    if odd or not masked or query.device.type != "cpu" or t * s > LONGEST**2:
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)  # autocast computes in another one
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None:
        attention_mask = query.new_full((t, s), float("-inf")).triu(1 + s - t)
    scale = options.get("scaling") or d**-0.5
    query = query.reshape(b * k, h // k * t, d)  # (B·K, H/K·T, D)
    keys = key.contiguous().view(b * k, s, d)  # a slice of a decoding buffer is not; bmm would copy it column by column
    scores = torch.bmm(query, keys.transpose(1, 2))  # (B·K, H/K·T, S)
    scores = torch.add(attention_mask, scores.view(b, h, t, s), alpha=scale)
    if s >= WIDE and (t >= WIDE or scores.requires_grad):
        weights = scores.softmax(-1)  # computed in float32 as well, without a copy in it; the backward pass keeps less
    else:
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    states = torch.bmm(weights.view(b * k, h // k * t, s), value.reshape(b * k, s, -1))
    return states.view(b, h, t, -1).transpose(1, 2), None


def _whole(module: Any, options: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
    """Attention of the sequences of a layout: states (B, T, H, D)."""
    with laid_out(None):
        return attention(module, query, key, value, mask, **options)[0]


def current_layout() -> Layout | None:
    """How the tokens of the row that is being read hang together; None if whole sequences are read."""
    return _layout


@contextmanager
def laid_out(layout: Layout | None) -> Iterator[None]:
    """Within, a row holds the tokens of many sequences."""
    global _layout
    before, _layout = _layout, layout
    try:
        yield
    finally:
        _layout = before


def additive(real: Tensor, t: int, dtype: torch.dtype) -> Tensor:
    """What to add to the scores (B, 1, T, S) of the last T of S positions, of which some are real (B, S)."""
    s = real.shape[1]
    later = torch.ones(t, s, dtype=torch.bool, device=real.device).triu(1 + s - t)
    unseen = later | (real == 0)[:, None, None]
    return torch.zeros(unseen.shape, dtype=dtype, device=real.device).masked_fill_(unseen, HIDDEN)


def install(model: Any) -> None:
    """Let a model attend this way, unless no fused kernel computes what it does (Gemma 2's caps, gpt-oss's sinks)."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
