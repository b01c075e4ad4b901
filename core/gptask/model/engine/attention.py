"""Attention by plain matrix products, registered with transformers: at short lengths on a CPU faster than the fused
kernel, whose blocks are made for long ones (tests/benchmarks/attention.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "gptask"
HIDDEN = -1e30  # added to a score that must not count; not -inf: a pad's own row may have nothing else
LONGEST = 512  # queries and keys up to which the products pay; beyond, their (T, S) scores fill memory
BLOCK = 128  # queries, about, that are looked at together: with fewer, products take longer than they save
WIDE = 160  # queries and keys from which a softmax in the scores' own number format is the faster one

_layout: Any = None  # a `packing.PackedLayout`, or the `decoding.DecodingBatch` of a step


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend from queries (B, H, T, D) to keys and values (B, K, S, D); states (B, T, H, D) and no weights.

    Heads that share keys (grouped-query attention) go through one product, so keys are not repeated. The mask is None
    (causal) or one of numbers to add, (B, 1, T, S), which lets a query see later keys unless ``hides_later`` is set.
    What this does not do goes to the fused kernel.
    """
    if _layout:
        window = options.get("sliding_window")
        return _layout.attend(partial(_whole, module, options), query, key, value, window), None
    t, s = query.shape[2], key.shape[2]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    hides_later = options.pop("hides_later", attention_mask is None)
    odd = options.get("dropout") or options.get("position_bias") is not None
    odd = odd or (attention_mask is not None and attention_mask.requires_grad)
    masked = causal if attention_mask is None else attention_mask.is_floating_point()
    if odd or not masked or query.device.type != "cpu" or t * s > LONGEST**2:
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)  # autocast computes in another one
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (states.to(torch.get_autocast_dtype("cpu")) for states in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            return attention(module, query, key, value, attention_mask, hides_later=hides_later, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    if t == 1 and not torch.is_grad_enabled():
        return _newest(query, key, value, attention_mask, scale), None
    size = -(-t // max(1, round(t / BLOCK))) if hides_later else t
    return BlockedAttention.apply(query, key, value, attention_mask, scale, size).transpose(1, 2), None


class BlockedAttention(torch.autograd.Function):
    """``softmax(scale · Q Kᵀ + mask) V`` (Vaswani et al. 2017, arXiv 1706.03762), a block of queries at a time, without
    the keys that come after all of them."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, size: int
    ) -> Tensor:
        """States (B, H, T, E) of queries (B, H, T, D), which are the last T of S positions, keys (B, K, S, D) and
        values (B, K, S, E); the mask to add is (B, 1, T, S) or None (causal). ``size`` queries are a block, all T of
        them if they see later keys."""
        b, h, t, d = query.shape
        k, s = key.shape[1:3]
        queries = query.reshape(b * k, h // k, t, d)  # heads that share keys go through one product
        keys = key.contiguous().view(b * k, s, d)  # a slice of a decoding buffer is not; bmm would copy it by columns
        values = value.reshape(b * k, s, -1)
        blocks = [slice(start, min(start + size, t)) for start in range(0, t, size)]
        weights, states = [], []
        for block in blocks:
            n, end = block.stop - block.start, s - t + block.stop
            scores = torch.bmm(_block(queries, block), keys[:, :end].transpose(1, 2))  # (B·K, H/K·n, end)
            each = scores.view(b, h, n, end)
            if mask is None:
                each.mul_(scale)[..., end - n :] += each.new_full((n, n), float("-inf")).triu(1)
            else:
                torch.add(mask[..., block, :end], each, alpha=scale, out=each)
            if end >= WIDE and (t >= WIDE or any(ctx.needs_input_grad)):
                weights.append(scores.softmax(-1))  # computed in float32 as well, without a copy in it
            else:
                weights.append(scores.softmax(-1, dtype=torch.float32).to(scores.dtype))
            states.append(torch.bmm(weights[-1], values[:, :end]).view(b, h, n, -1))
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.blocks, ctx.scale = blocks, scale
        return _joined(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of queries, keys and values; that of scores with weights P is ``P (dP - Σ dP P)``."""
        queries, keys, values, *weights = ctx.saved_tensors
        outs = grad.reshape(*queries.shape[:3], -1)
        to_queries: list[Tensor] = []
        to_both: list[Tensor] = []
        for block, weight in reversed([*zip(ctx.blocks, weights, strict=True)]):  # the last one sees all keys
            end, out = weight.shape[-1], _block(outs, block)
            to_weight = torch.bmm(out, values[:, :end].transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weight, weight, -1, weight.dtype)
            to_queries.insert(0, torch.bmm(to_scores, keys[:, :end]).view(*queries.shape[:2], -1, queries.shape[3]))
            found = [torch.bmm(to_scores.mT, _block(queries, block)), torch.bmm(weight.mT, out)]
            for whole, part in zip(to_both, found, strict=False):
                whole[:, :end] += part
            to_both = to_both or found
        b = len(grad)
        to_query = _joined(to_queries).mul_(ctx.scale)
        to_key, to_value = (whole.view(b, -1, *whole.shape[1:]) for whole in to_both)
        return to_query.view(b, -1, *to_query.shape[2:]), to_key.mul_(ctx.scale), to_value, None, None, None


def _newest(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """What `BlockedAttention` makes of one query (B, H, 1, D) for all positions, as states (B, 1, H, E)."""
    b, h, _, d = query.shape
    k, s = key.shape[1:3]
    scores = torch.bmm(query.reshape(b * k, h // k, d), key.reshape(b * k, s, d).transpose(1, 2))
    each = scores.view(b, h, 1, s)
    if mask is None:
        each.mul_(scale)
    else:
        torch.add(mask, each, alpha=scale, out=each)
    return torch.bmm(scores.softmax(-1), value.reshape(b * k, s, -1)).view(b, 1, h, -1)


def _block(states: Tensor, block: slice) -> Tensor:
    """Those (B·K, H/K·n, D) of n of the queries (B·K, H/K, T, D)."""
    return states[:, :, block].flatten(1, 2)


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)  # cat would copy a single one


def _whole(module: Any, options: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
    """Attention of the sequences of a layout: states (B, T, H, D)."""
    with packed_attention(None):
        return attention(module, query, key, value, mask, hides_later=True, **options)[0]


def current_layout() -> Any:
    """How the tokens that are being read hang together; None if whole sequences are read."""
    return _layout


@contextmanager
def packed_attention(layout: Any) -> Iterator[None]:
    """Within, ``layout.attend`` knows which keys and values each token sees."""
    global _layout
    before, _layout = _layout, layout
    try:
        yield
    finally:
        _layout = before


def open_mask(model: Any) -> Tensor:
    """A mask that hides nothing, (1, 1, 1, 1), so that the model makes none: the layout brings its own."""
    return torch.zeros(1, 1, 1, 1, device=model.device, dtype=model.dtype)


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
