"""The last layer's feed-forward part, computed only for the states that somebody reads.

Shapes: B rows, T positions, M = B·T flat positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptask.model.engine.forward_registry import original_forward, replace_forward
from gptask.model.engine.forward_state import current_state

MAX_NEEDED_SHARE = 0.9  # share of the states up to which it pays


def install(layer: Any, channels: int) -> str | None:
    """Let the feed-forward part of a model's last layer skip states that no one reads; return why it can't.

    ``layer`` is None for a model whose layers are no plain list.
    """
    mlp = getattr(layer, "mlp", None)
    if mlp is None:
        return "the last layer has no feed-forward part named mlp"
    if not _is_positionwise(mlp, channels):
        return "the last feed-forward part mixes positions"
    replace_forward(mlp, _needed_only_forward, wraps=True)
    return None


def needed_places(needed: Tensor | None) -> Tensor | None:
    """The flat positions of the ``needed`` states, (B, T) or (N,) flags; None where all are computed."""
    if needed is None:
        return None
    places = needed.flatten().nonzero()[:, 0]
    return places if len(places) <= MAX_NEEDED_SHARE * needed.numel() else None


def _needed_only_forward(mlp: Any, x: Tensor) -> Tensor:
    forward: Callable[[Tensor], Tensor] = original_forward(mlp)
    state = current_state()
    if state is None or state.needed_places is None:
        return forward(x)
    x_MC = x.flatten(0, 1)
    needed_states = forward(x_MC.index_select(0, state.needed_places)[None])[0]
    return torch.zeros_like(x_MC).index_copy(0, state.needed_places, needed_states).view_as(x)


def _is_positionwise(mlp: Any, channels: int) -> bool:
    """Whether a feed-forward part computes each position by itself, tried on random states."""
    parameter = next(mlp.parameters())
    generator = torch.Generator(parameter.device).manual_seed(0)
    x_1TC = torch.randn(1, 3, channels, generator=generator, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        together, alone = mlp(x_1TC), mlp(x_1TC[:, 1:2])
    return bool((together[:, 1:2] - alone).abs().max() <= 0.03 * together.abs().max())
