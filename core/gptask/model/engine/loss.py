"""Cross-entropy over a large vocabulary, computed in chunks.

Shapes: N states, n states of a chunk, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from gptask.model.engine.interface import EngineBackbone

MAX_LOGITS = 2**26  # logits that a loss holds at once: some 650 MB, as they exist in three forms
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


def chunked_token_nll(backbone: EngineBackbone, states: Tensor, next_ids: Tensor) -> Tensor:
    """Return the cross-entropy (N,) of states (N, C) and the token ids (N,) that follow them.

    Logits (N, V) of a large vocabulary (Gemma's V is 262,144) are computed in chunks and not kept for the backward
    pass. The same holds for any vocabulary projection that does not learn, where chunks are also the fastest.
    """
    if (weight_VC := frozen_projection(backbone, states)) is not None:
        chunked_nll: Callable[[Tensor, Tensor, Tensor], Tensor] = ChunkedCrossEntropy.apply
        return chunked_nll(states, weight_VC, next_ids)

    def chunk_nll(states_NC: Tensor, next_ids_N: Tensor) -> Tensor:
        logits_NV = backbone.logits(states_NC)
        return nn.functional.cross_entropy(logits_NV.float(), next_ids_N, reduction="none")

    chunk_size = max(1, MAX_LOGITS // backbone.model.get_output_embeddings().weight.shape[0])
    if len(states) <= chunk_size:
        return chunk_nll(states, next_ids)
    chunks = zip(torch.split(states, chunk_size), torch.split(next_ids, chunk_size), strict=True)
    return torch.cat([checkpoint(chunk_nll, *chunk, use_reentrant=False) for chunk in chunks])


def frozen_projection(backbone: EngineBackbone, states: Tensor) -> Tensor | None:
    """Return the weights (V, C) if they don't learn and logits are just ``states @ weights.T``, else None."""
    layer = backbone.model.get_output_embeddings()
    is_plain = type(layer) is nn.Linear and layer.bias is None and backbone.softcap is None
    learns = layer.weight.requires_grad and torch.is_grad_enabled()
    return layer.weight if is_plain and not learns and layer.weight.dtype is states.dtype else None
