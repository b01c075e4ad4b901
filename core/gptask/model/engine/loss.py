"""Cross-entropy over a large vocabulary, made part by part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_STATES = 192  # states whose scores for the whole vocabulary are held at once
CACHED_LOGITS = 2**19  # of them that a CPU looks at together in float32: more would not stay in its caches


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy (N,) of a frozen vocabulary projection (V, C): logits (N, V) are made part by part and turned into
    the states' gradient at once, so that none are kept (Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, following: Tensor) -> Tensor:
        """Nats of states (N, C) and the ids (N,) that follow them."""
        costs, slopes = [], []
        parts = -(-len(states) // CHUNK_STATES) or 1
        for some, ids in zip(states.tensor_split(parts), following[:, None].tensor_split(parts), strict=True):
            logits = some @ weight.T
            size = rows_per_chunk(logits)
            for few, own in zip(logits.split(size), ids.split(size), strict=True):
                scores = few.float()
                most = scores.amax(-1, keepdim=True)
                cost = most - scores.gather(1, own)
                total = scores.sub_(most).exp_().sum(-1, keepdim=True)
                costs.append((cost + total.log())[:, 0])
                if ctx.needs_input_grad[0]:
                    few.copy_(scores.div_(total).scatter_add_(1, own, torch.full_like(total, -1)))
            if ctx.needs_input_grad[0]:
                slopes.append(logits @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(costs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of the states."""
        (slopes,) = ctx.saved_tensors
        return slopes.mul(grad[:, None]).to(slopes.dtype), None, None


def rows_per_chunk(scores: Tensor) -> int:
    """Rows of scores (N, V) to be looked at together in float32."""
    return max(1, CACHED_LOGITS // scores.shape[1]) if scores.device.type == "cpu" else max(1, len(scores))
