"""Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928), and the attention of every head between words.

It shows where information can have come from, and is no reason for a prediction (Jain & Wallace 2019, arXiv
1902.10186).

Shapes: L layers, H heads, T tokens of an item, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptask.analysis.explain.explanation import AttentionMaps
from gptask.errors import UserError
from gptask.model.engine.private import attention_implementation

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

EAGER = "eager"  # transformers' attention that returns its weights


def rollout(backbone: GPTBackbone, ids_1T: Tensor) -> np.ndarray:
    """How much of each token's last state (rows of (T, T)) came from each token, by the heads' mean attention.

    A layer's matrix is half attention and half identity, for the residual stream.
    """
    t = ids_1T.shape[1]
    flow_TT = torch.eye(t, dtype=torch.float64)

    def add_layer(weights_HTT: Tensor) -> None:
        nonlocal flow_TT
        mixed_TT = (weights_HTT.double().mean(0).cpu() + torch.eye(t, dtype=torch.float64)) / 2
        flow_TT = mixed_TT / mixed_TT.sum(1, keepdim=True) @ flow_TT

    _each_layer(backbone, ids_1T, add_layer)
    result: np.ndarray = flow_TT.numpy()
    return result


def attention_maps(backbone: GPTBackbone, ids_1T: Tensor, shares_TW: np.ndarray) -> AttentionMaps:
    """The attention between words in every head: summed over the tokens that are read, the mean of those that read."""
    reads_TW = torch.tensor(shares_TW > 0, dtype=torch.float32)
    readers_WT = (reads_TW / reads_TW.sum(0).clamp(min=1)).T
    read_TW = torch.tensor(shares_TW)
    layers: list[np.ndarray] = []

    def add_layer(weights_HTT: Tensor) -> None:
        weights_HWW = readers_WT @ weights_HTT.float().cpu() @ read_TW
        layers.append((weights_HWW * 255).round().to(torch.uint8).numpy())

    _each_layer(backbone, ids_1T, add_layer)
    return AttentionMaps(np.stack(layers))


def _each_layer(backbone: GPTBackbone, ids_1T: Tensor, take: Callable[[Tensor], None]) -> None:
    """Call ``take`` with the attention weights (H, T, T) of each layer in turn; one layer's are held at a time.

    Raises `UserError` for a model whose attention is not of tokens to tokens.
    """
    t, taken = ids_1T.shape[1], 0

    def hook(module: Any, inputs: Any, outputs: Any) -> None:
        nonlocal taken
        weights = outputs[1] if isinstance(outputs, tuple) and len(outputs) > 1 else None
        if isinstance(weights, Tensor) and weights.ndim == 4 and weights.shape[-2:] == (t, t):
            take(weights[0])
            taken += 1

    attentions = [module for layer in backbone.layers for module in layer.children()]
    handles = [module.register_forward_hook(hook) for module in attentions]
    try:
        with torch.inference_mode(), eager_attention(backbone):
            # not by the backbone's own method, which in a server lets others go first: the hooks are for this pass
            backbone.engine.hidden(ids_1T, adapters=None if backbone.adapter is None else [backbone.adapter])
    finally:
        for handle in handles:
            handle.remove()
    if taken < len(backbone.layers) or not taken:
        raise UserError(
            f"{type(backbone.model).__name__} gives the attention of {taken} of its {len(backbone.layers)} layers, so "
            "there is no rollout of it: choose method=ig or method=occlusion"
        )


@contextmanager
def eager_attention(backbone: GPTBackbone) -> Iterator[None]:
    """The model computes its attention by transformers' function that returns the weights, for all threads."""
    usual = attention_implementation(backbone.model)
    backbone.model.set_attn_implementation(EAGER)
    try:
        yield
    finally:
        backbone.model.set_attn_implementation(usual)
