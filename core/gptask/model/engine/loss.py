"""Cross-entropy over a large vocabulary, computed in chunks.

Shapes: N states, n states of a chunk, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_STATES = 192  # states whose logits over the whole vocabulary are held at once
CACHED_LOGITS = 2**19  # logits that a CPU converts to float32 at once: more would not stay in its caches


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy (N,) in nats of a frozen vocabulary projection (V, C).

    Logits are computed chunk by chunk and turned into the states' gradient at once, so that none are kept (Hsu et al.
    2024, "Liger Kernel", arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, states_NC: Tensor, weight_VC: Tensor, next_ids_N: Tensor) -> Tensor:
        """Cross-entropy (N,) of states and the ids that follow them."""
        nats, state_grads = [], []
        chunks = -(-len(states_NC) // CHUNK_STATES) or 1
        state_chunks, id_chunks = states_NC.tensor_split(chunks), next_ids_N[:, None].tensor_split(chunks)
        for states_nC, ids_n1 in zip(state_chunks, id_chunks, strict=True):
            logits_nV = states_nC @ weight_VC.T
            size = rows_per_chunk(logits_nV)
            for part_nV, part_ids_n1 in zip(torch.split(logits_nV, size), torch.split(ids_n1, size), strict=True):
                scores_nV = part_nV.float()
                max_n1 = scores_nV.amax(-1, keepdim=True)
                margin_n1 = max_n1 - scores_nV.gather(1, part_ids_n1)
                total_n1 = scores_nV.sub_(max_n1).exp_().sum(-1, keepdim=True)
                nats.append((margin_n1 + total_n1.log())[:, 0])
                if ctx.needs_input_grad[0]:  # softmax minus one-hot, written over the logits
                    minus_one_n1 = torch.full_like(total_n1, -1)
                    part_nV.copy_(scores_nV.div_(total_n1).scatter_add_(1, part_ids_n1, minus_one_n1))
            if ctx.needs_input_grad[0]:
                state_grads.append(logits_nV @ weight_VC)
        if state_grads:
            ctx.save_for_backward(torch.cat(state_grads))
        return torch.cat(nats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> Any:
        """Gradient (N, C) of the states."""
        (state_grads_NC,) = ctx.saved_tensors
        return state_grads_NC.mul(grad_N[:, None]).to(state_grads_NC.dtype), None, None


def rows_per_chunk(scores: Tensor) -> int:
    """Return how many rows of scores (N, V) to convert to float32 at once."""
    return max(1, CACHED_LOGITS // scores.shape[1]) if scores.device.type == "cpu" else max(1, len(scores))
