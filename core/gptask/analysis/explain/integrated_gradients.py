"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) of an item's scores in its token embeddings.

The path goes straight from a baseline, in which all tokens of the input's words have one vector and those of the
prompt's own text stay, to the item. The gradient is integrated by Gauss-Legendre quadrature.

Shapes: T tokens of an item, C channels, S steps, B steps of one pass, M objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

AUTO_STEPS = (16, 32, 64, 128, 256)
MAX_ERROR = 0.05  # of the completeness, from which ``steps=auto`` doubles the steps
MIN_DIFFERENCE = 0.1  # nats: a smaller difference to the baseline is taken as this much where the error is measured
EMBEDDINGS_AT_ONCE = 4096
PASS_TOKENS = 512  # of one forward and backward pass; a longer row is computed alone, layer by layer
Values = Callable[[Tensor], Tensor]  # the objectives (B, M) of embeddings (B, T, C)


@dataclass
class TokenAttributions:
    """The parts (M, T) of each objective that each token has, and the completeness errors (M,) after so many steps."""

    parts: np.ndarray
    errors: np.ndarray
    steps: int


def integrated_gradients(
    backbone: GPTBackbone,
    values: Values,
    ids: Sequence[int],
    is_input: np.ndarray,
    neutral_C: Tensor,
    steps: int | None = None,
) -> TokenAttributions:
    """Attribute objectives to the tokens of an item that ``is_input`` (T,) marks; all others have no part in them.

    ``neutral_C`` is that of `mean_embedding`. ``steps`` None doubles them from 16 to 256 until the error of every
    objective is below `MAX_ERROR`.
    """
    embeddings = backbone.model.get_input_embeddings()
    ids_1T = torch.tensor([list(ids)], device=backbone.device)
    with torch.no_grad():
        item_1TC = embeddings(ids_1T)
        baseline_1TC = input_baseline(item_1TC, is_input, neutral_C)
        at_baseline, at_item = values(torch.cat([baseline_1TC, item_1TC])).double()
    difference_M = at_item - at_baseline
    for count in [steps] if steps else AUTO_STEPS:
        parts_MT = _integral(backbone, values, baseline_1TC, item_1TC, count)
        errors_M = (parts_MT.sum(1) - difference_M).abs() / difference_M.abs().clamp(min=MIN_DIFFERENCE)
        if errors_M.max() < MAX_ERROR:
            break
    return TokenAttributions(parts_MT.cpu().numpy(), errors_M.cpu().numpy(), count)


def input_baseline(item_1TC: Tensor, is_input: np.ndarray, neutral_C: Tensor) -> Tensor:
    """The item (1, T, C) with the mean of the input's own embeddings in the place of each.

    A word then weighs by what sets it apart from the others. The neutral vector counts as one more of them, without
    which an input of one word would be its own baseline. Zeros are none: the norm of a model's first layer makes the
    same of a vector however short it is, so that the gradient grows without bound towards 0, and the integral does not
    converge (docs/explain.md has figures of several baselines).
    """
    input_T = torch.tensor(is_input, device=item_1TC.device)
    inputs_NC = item_1TC[0, input_T].float()
    mean_C = (inputs_NC.sum(0) + neutral_C.float()) / (len(inputs_NC) + 1)
    return torch.where(input_T[None, :, None], mean_C.to(item_1TC.dtype), item_1TC)


def mean_embedding(backbone: GPTBackbone) -> Tensor:
    """The mean (C,) of all token embeddings, which stands for a token that says nothing."""
    embeddings = backbone.model.get_input_embeddings()
    size = embeddings.weight.shape[0]
    with torch.inference_mode(False), torch.no_grad():
        total_C = torch.zeros(backbone.channels, device=backbone.device)
        for start in range(0, size, EMBEDDINGS_AT_ONCE):
            ids = torch.arange(start, min(start + EMBEDDINGS_AT_ONCE, size), device=backbone.device)
            total_C += embeddings(ids).float().sum(0)
        mean_C: Tensor = (total_C / size).to(embeddings.weight.dtype)
        return mean_C


def _integral(backbone: GPTBackbone, values: Values, baseline_1TC: Tensor, item_1TC: Tensor, steps: int) -> Tensor:
    """The parts (M, T) of the objectives."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    positions_S, weights_S = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    direction_1TC = item_1TC - baseline_1TC
    tokens = item_1TC.shape[1]
    rows = max(1, PASS_TOKENS // tokens)
    parts_MT: Any = 0.0
    # a layer that is computed again in the backward pass needs the pass's adapter there, too
    with frozen(backbone), checkpointed(backbone, tokens > PASS_TOKENS), backbone.engine.running(backbone.adapter):
        for start in range(0, steps, rows):
            chosen = slice(start, start + rows)
            positions_B11 = positions_S[chosen, None, None].to(item_1TC)
            embeds_BTC = (baseline_1TC + positions_B11 * direction_1TC).detach().requires_grad_()
            with torch.enable_grad():
                values_M = values(embeds_BTC).sum(0)
                gradients = [
                    torch.autograd.grad(value, embeds_BTC, retain_graph=number + 1 < len(values_M))[0]
                    for number, value in enumerate(values_M)
                ]
            gradients_MBTC = torch.stack(gradients).double()
            weights_B11 = weights_S[chosen, None, None].to(gradients_MBTC)
            parts_MT = parts_MT + (gradients_MBTC * weights_B11 * direction_1TC.double()).sum((1, 3))
    result: Tensor = parts_MT
    return result


@contextmanager
def frozen(backbone: GPTBackbone) -> Iterator[None]:
    """No weight asks for a gradient inside this context, so that none is computed."""
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def checkpointed(backbone: GPTBackbone, is_on: bool) -> Iterator[None]:
    """Inside this context a backward pass computes each layer again and keeps nothing of it (Chen et al. 2016).

    Layers do so only in training, which their own flag says; that of the modules in them, such as dropout, stays.
    """
    if not is_on or not backbone.layers:
        yield
        return
    backbone.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    modes = [(layer, layer.training) for layer in backbone.layers]
    for layer, _ in modes:
        layer.training = True
    try:
        yield
    finally:
        backbone.model.activation_checkpointing_disable()
        for layer, mode in modes:
            layer.training = mode
