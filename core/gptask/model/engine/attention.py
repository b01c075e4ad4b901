"""Attention as plain matrix products, registered with transformers under the names "gptask" and "gptask_padded".

On a CPU and at short lengths it is faster than the fused kernel, whose blocks are made for long sequences
(tests/benchmarks/attention.py).

Shapes: B rows, T query positions (the last T of S), S key positions, H query heads, K key and value heads, D channels
of a query and key head, E channels of a value head. Query heads that share keys go through one product: M = B·K
products, G = H/K query heads per key head. Of a block of queries: U queries, W keys that it sees, R = G·U rows of its
product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gptask.model.engine import private
from gptask.model.engine.forward_state import current_state

ATTENTION_NAME, PADDED_NAME, MODEL_ATTENTION = "gptask", "gptask_padded", "sdpa"  # for transformers
MASKED_SCORE = -1e30  # added to the score of a hidden key; not -inf: the row of a pad may see no key at all
MAX_POSITIONS = 512  # queries and keys up to which the products pay; beyond, their (T, S) scores fill memory
BLOCK_QUERIES = 128  # approximate queries per block: with fewer, the products take longer than they save
NATIVE_SOFTMAX_MIN = 160  # queries and keys from which a softmax in the scores' own number format is faster


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend from queries (B, H, T, D) to keys and values (B, K, S, D); returns states (B, T, H, D) and no weights.

    Heads that share keys (grouped-query attention) go through one product, so keys are not repeated. The mask is None
    (causal) or additive, (B, 1, T, S); an additive mask lets a query see later keys unless ``hides_later`` is set.
    The fused kernel computes every call that this function does not support.
    """
    if (state := current_state()) and state.layout:
        window = options.get("sliding_window")
        return state.layout.attend(partial(_layout_attention, module, options), query, key, value, window), None
    return padded_attention(module, query, key, value, attention_mask, **options)


def padded_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The same as `attention`, for padded batches."""
    hides_later = options.pop("hides_later", attention_mask is None)
    if not _is_supported(module, query, key, attention_mask, options):
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)  # autocast computes in another number format
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (states.to(torch.get_autocast_dtype("cpu")) for states in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            return padded_attention(module, query, key, value, attention_mask, hides_later=hides_later, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    t = query.shape[2]
    if t == 1 and not torch.is_grad_enabled():
        return _single_query_attention(query, key, value, attention_mask, scale), None
    block_size = -(-t // max(1, round(t / BLOCK_QUERIES))) if hides_later else t
    apply: Callable[..., Tensor] = BlockedAttention.apply
    return apply(query, key, value, attention_mask, scale, block_size).transpose(1, 2), None


def _is_supported(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether the plain products compute this call: causal or with an additive mask, on a CPU, short enough."""
    if options.get("dropout") or options.get("position_bias") is not None or (mask is not None and mask.requires_grad):
        return False
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    masked = causal if mask is None else mask.is_floating_point()
    return bool(masked) and query.device.type == "cpu" and query.shape[2] * key.shape[2] <= MAX_POSITIONS**2


class BlockedAttention(torch.autograd.Function):
    """``softmax(scale · Q Kᵀ + mask) V`` (Vaswani et al. 2017, arXiv 1706.03762), one block of queries at a time.

    A block's products leave out the keys that come after all of its queries.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_BHTD: Tensor,
        key_BKSD: Tensor,
        value_BKSE: Tensor,
        mask_B1TS: Tensor | None,
        scale: float,
        block_size: int,
    ) -> Tensor:
        """Return states (B, H, T, E); without an additive mask the attention is causal.

        A block has ``block_size`` queries; that is all T of them if queries see later keys.
        """
        b, h, t, d = query_BHTD.shape
        k, s = key_BKSD.shape[1:3]
        query_MGTD = query_BHTD.reshape(b * k, h // k, t, d)
        key_MSD = key_BKSD.contiguous().view(b * k, s, d)  # bmm would copy a slice of a decoding buffer by columns
        value_MSE = value_BKSE.reshape(b * k, s, -1)
        blocks = [slice(start, min(start + block_size, t)) for start in range(0, t, block_size)]
        weights_of_blocks, states_of_blocks = [], []
        for block in blocks:
            u, w = block.stop - block.start, s - t + block.stop
            scores_MRW = torch.bmm(_product_rows(query_MGTD, block), key_MSD[:, :w].transpose(1, 2))
            scores_BHUW = scores_MRW.view(b, h, u, w)  # the same memory
            if mask_B1TS is None:
                scores_BHUW.mul_(scale)[..., w - u :] += scores_BHUW.new_full((u, u), float("-inf")).triu(1)
            else:
                torch.add(mask_B1TS[..., block, :w], scores_BHUW, alpha=scale, out=scores_BHUW)
            if w >= NATIVE_SOFTMAX_MIN and (t >= NATIVE_SOFTMAX_MIN or any(ctx.needs_input_grad)):
                weights_MRW = scores_MRW.softmax(-1)  # torch computes it in float32 as well, without a float32 copy
            else:
                weights_MRW = scores_MRW.softmax(-1, dtype=torch.float32).to(scores_MRW.dtype)
            weights_of_blocks.append(weights_MRW)
            states_of_blocks.append(torch.bmm(weights_MRW, value_MSE[:, :w]).view(b, h, u, -1))
        ctx.save_for_backward(query_MGTD, key_MSD, value_MSE, *weights_of_blocks)
        ctx.blocks, ctx.scale = blocks, scale
        return _join_blocks(states_of_blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> Any:
        """Gradients of queries, keys and values; that of scores with weights P is ``P (dP - Σ dP P)``."""
        query_MGTD, key_MSD, value_MSE, *weights_of_blocks = ctx.saved_tensors
        grad_MGTE = grad_BHTE.reshape(*query_MGTD.shape[:3], -1)
        query_grads_of_blocks: list[Tensor] = []
        key_value_grads: list[Tensor] = []  # (M, S, D) and (M, S, E)
        for block, weights_MRW in reversed([*zip(ctx.blocks, weights_of_blocks, strict=True)]):
            w, grad_MRE = weights_MRW.shape[-1], _product_rows(grad_MGTE, block)
            weights_grad_MRW = torch.bmm(grad_MRE, value_MSE[:, :w].transpose(1, 2))
            scores_grad_MRW = private.softmax_backward(weights_grad_MRW, weights_MRW)
            query_grad_MRD = torch.bmm(scores_grad_MRW, key_MSD[:, :w])
            query_grads_of_blocks.insert(0, query_grad_MRD.view(*query_MGTD.shape[:2], -1, query_MGTD.shape[3]))
            key_grad_MWD = torch.bmm(scores_grad_MRW.mT, _product_rows(query_MGTD, block))
            value_grad_MWE = torch.bmm(weights_MRW.mT, grad_MRE)
            if not key_value_grads:  # the last block comes first and sees all keys: W = S
                key_value_grads = [key_grad_MWD, value_grad_MWE]
            else:
                key_value_grads[0][:, :w] += key_grad_MWD
                key_value_grads[1][:, :w] += value_grad_MWE
        b = len(grad_BHTE)
        query_grad_MGTD = _join_blocks(query_grads_of_blocks).mul_(ctx.scale)
        key_grad_BKSD, value_grad_BKSE = (grad.view(b, -1, *grad.shape[1:]) for grad in key_value_grads)
        query_grad_BHTD = query_grad_MGTD.view(b, -1, *query_grad_MGTD.shape[2:])
        return query_grad_BHTD, key_grad_BKSD.mul_(ctx.scale), value_grad_BKSE, None, None, None


def _single_query_attention(
    query_BH1D: Tensor, key_BKSD: Tensor, value_BKSE: Tensor, mask_B11S: Tensor | None, scale: float
) -> Tensor:
    """States (B, 1, H, E) of one query per row, which sees every key that the mask does not hide."""
    b, h, _, d = query_BH1D.shape
    k, s = key_BKSD.shape[1:3]
    query_MGD = query_BH1D.reshape(b * k, h // k, d)
    scores_MGS = torch.bmm(query_MGD, key_BKSD.reshape(b * k, s, d).transpose(1, 2))
    scores_BH1S = scores_MGS.view(b, h, 1, s)  # the same memory
    if mask_B11S is None:
        scores_BH1S.mul_(scale)
    else:
        torch.add(mask_B11S, scores_BH1S, alpha=scale, out=scores_BH1S)
    return torch.bmm(scores_MGS.softmax(-1), value_BKSE.reshape(b * k, s, -1)).view(b, 1, h, -1)


def _product_rows(states_MGTD: Tensor, block: slice) -> Tensor:
    """The states (M, R, D) of a block's queries, as the rows of one product."""
    return states_MGTD[:, :, block].flatten(1, 2)


def _join_blocks(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)  # cat would copy a single block


def _layout_attention(
    module: Any, options: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, mask: Any
) -> Tensor:
    """States (B, T, H, E) of padded sequences that a layout gathered, by an additive mask that hides later keys."""
    return padded_attention(module, query, key, value, mask, hides_later=True, **options)[0]


def open_mask(model: Any) -> Tensor:
    """Return a mask (1, 1, 1, 1) that hides nothing, so that the model makes none: the layout brings its own."""
    return torch.zeros(1, 1, 1, 1, device=model.device, dtype=model.dtype)


def additive_mask(real_BS: Tensor, t: int, dtype: torch.dtype) -> Tensor:
    """Return the additive mask (B, 1, T, S) of the last T of S positions, which hides later keys and pads."""
    s = real_BS.shape[1]
    later_TS = torch.ones(t, s, dtype=torch.bool, device=real_BS.device).triu(1 + s - t)
    hidden_B1TS = later_TS | (real_BS == 0)[:, None, None]
    return torch.zeros(hidden_B1TS.shape, dtype=dtype, device=real_BS.device).masked_fill_(hidden_B1TS, MASKED_SCORE)


def install(model: Any, compiled: bool = False) -> str | None:
    """Make a model use this attention; return the reason where it does not fit.

    A ``compiled`` model attends in padded batches alone: torch.compile can't trace the ContextVar that has the layout.
    """
    found = private.attention_implementation(model)
    if found not in (MODEL_ATTENTION, ATTENTION_NAME, PADDED_NAME):
        return f"the model computes its own ({found})"  # Gemma 2's caps, gpt-oss's sinks: no fused kernel does
    for name, function in ((ATTENTION_NAME, attention), (PADDED_NAME, padded_attention)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(PADDED_NAME if compiled else ATTENTION_NAME)
    return None


def uninstall(model: Any) -> None:
    """Give a model the attention back that `install` replaced."""
    if private.attention_implementation(model) in (ATTENTION_NAME, PADDED_NAME):
        model.set_attn_implementation(MODEL_ATTENTION)


def is_installed(model: Any) -> bool:
    """Whether a model uses this attention, packed rows included."""
    return private.attention_implementation(model) == ATTENTION_NAME
