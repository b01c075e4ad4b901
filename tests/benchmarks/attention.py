"""One training step with attention by plain products against the fused kernel (sdpa), at several shapes."""

from __future__ import annotations

from typing import Any

import torch
from harness import FULL, Result, alternate
from ours import Training, options

SHAPES = ((16, 26), (40, 26), (8, 128), (4, 256))


def run(tier: str) -> list[Result]:
    """Tokens/s of forward and backward on random ids (B, T)."""
    from gptask.model.engine.attention import ATTENTION_NAME

    ours = Training(options("sst2", "data.limit.train=16"))
    backbone = ours.module.backbone
    model = backbone.model

    def step(kind: str, shape: tuple[int, int]) -> float:
        model.set_attn_implementation(kind)
        ids = torch.randint(0, 10_000, shape)
        hidden: Any = backbone.hidden(ids)
        hidden[:, -1].float().square().mean().backward()
        ours.module.zero_grad(set_to_none=True)
        return shape[0] * shape[1]

    results = []
    for shape in SHAPES if tier == FULL else SHAPES[:2]:
        sides = {kind: (lambda kind=kind, shape=shape: step(kind, shape)) for kind in (ATTENTION_NAME, "sdpa")}
        rates = alternate(sides, 8 if tier == FULL else 3)
        name = f"training step, {shape[0]} x {shape[1]} tokens"
        sides_rates = rates[ATTENTION_NAME], rates["sdpa"]
        results.append(Result(f"attention_{shape[0]}x{shape[1]}", name, "tokens/s", *sides_rates, "fused (sdpa)"))
    model.set_attn_implementation(ATTENTION_NAME)
    return results
