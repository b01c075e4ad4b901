"""Decoding-sized products with weights in oneDNN's layout against torch's linear layer, at several row counts."""

from __future__ import annotations

import torch
from harness import FULL, Result, alternate
from ours import Training, options

ROWS = (1, 16, 64, 256)


def run(tier: str) -> list[Result]:
    """Products/s of all weights of the backbone with M rows of states, each weight read from memory anew."""
    from gptask.model.engine.inference_weights import PackedWeight

    ours = Training(options("sst2", "data.limit.train=16"))
    body = ours.module.backbone.model.get_decoder()
    weights = [p.detach() for p in body.layers.parameters() if p.ndim == 2 and p.dtype is torch.bfloat16]
    packed_weights = [PackedWeight(weight) for weight in weights]
    if not packed_weights or not packed_weights[0].packed:
        return []
    results = []
    for m in ROWS if tier == FULL else ROWS[1:3]:
        states = {c: torch.randn(m, c).bfloat16() for c in {weight.shape[1] for weight in weights}}

        def packed(states: dict[int, torch.Tensor] = states) -> float:
            with torch.inference_mode():
                for weight, packed_weight in zip(weights, packed_weights, strict=True):
                    packed_weight.product(states[weight.shape[1]])
            return len(weights)

        def plain(states: dict[int, torch.Tensor] = states) -> float:
            with torch.inference_mode():
                for weight in weights:
                    torch.nn.functional.linear(states[weight.shape[1]], weight)
            return len(weights)

        rates = alternate({"packed": packed, "plain": plain}, 8 if tier == FULL else 3)
        name = f"linear layers, {m} rows"
        sides_rates = rates["packed"], rates["plain"]
        results.append(Result(f"packed_weights_{m}", name, "products/s", *sides_rates, "torch's linear"))
    return results
