"""Prompts of different lengths as one batch: left padding, its mask, and the logits behind it.

Shapes: B rows, T tokens that are read, S key positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from gptask.model.engine.attention import additive_mask
from gptask.model.engine.interface import EngineBackbone


def left_padded(rows: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, T); a pad repeats its row's first token, which the repetition penalty counts anyway."""
    width = max(map(len, rows))
    ids = [[row[0]] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def decoding_mask(backbone: EngineBackbone, real_BS: Tensor, t: int) -> Tensor | None:
    """Return the additive mask (B, 1, T, S) of the last T of S positions, None where all earlier positions are real.

    Where layers see a window only, it is ``real_BS`` itself: the model makes such a mask.
    """
    s = real_BS.shape[1]
    if not backbone.sees_all(s):
        return real_BS
    if t == s and real_BS.all():
        return None
    return additive_mask(real_BS, t, backbone.model.dtype)


def next_token_logits(
    backbone: EngineBackbone, ids_BT: Tensor, mask: Tensor | None, positions_BT: Tensor, cache: Cache | None
) -> Tensor:
    """Return logits (B, V) of the tokens that follow ``ids_BT``, given the keys and values before them."""
    hidden_BC = backbone.body(
        input_ids=ids_BT,
        attention_mask=mask,
        position_ids=positions_BT,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state[:, -1]
    return backbone.logits(hidden_BC)
