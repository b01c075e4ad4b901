"""A few steps before training, to tell what it will cost; weights and random state are as before afterwards."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch

from gptask.module import GPTModule
from gptask.results import peak_memory_mb

log = logging.getLogger("gptask")


def probe(module: GPTModule, data: Any, trainer: pl.Trainer) -> dict[str, float] | None:
    """Time forward and backward on a few batches, the largest among them; return minutes and peak memory in MB.

    Nothing is optimized, gradients are dropped and the random state is restored. Only core's data module can be
    probed (another's batches are not ours to count); elsewhere than on the CPU the model is not moved yet.
    """
    sampler = getattr(data.train_dataloader(), "batch_sampler", None)
    if not hasattr(sampler, "batches") or not isinstance(trainer.accelerator, pl.accelerators.CPUAccelerator):
        return None
    loader = data.train_dataloader()
    sizes = loader.batch_sampler.costs
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    picked = [order[-1], order[len(order) // 2], order[len(order) // 4]]
    state = torch.get_rng_state()
    module.train()
    seconds = tokens = 0.0
    for warm, number in enumerate([order[0], *picked]):  # the first one only warms up
        batch = loader.collate_fn([loader.dataset[row] for row in loader.batch_sampler.batches[number]])
        start = time.perf_counter()
        loss = module.head.loss(module.backbone.hidden(batch.input_ids, batch.lengths), batch)
        if loss.requires_grad:
            loss.backward()
        if warm:
            seconds += time.perf_counter() - start
            tokens += sizes[number]
        module.zero_grad(set_to_none=True)
    torch.set_rng_state(state)
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
    if module.states.get("train"):  # later epochs read what the first one kept
        epochs = 1
    total = sum(sizes) * float(trainer.limit_train_batches if isinstance(trainer.limit_train_batches, float) else 1)
    minutes = seconds / tokens * total * epochs / 60
    if trainer.max_steps > 0:
        minutes = min(minutes, seconds / tokens * sum(sizes) / len(sizes) * trainer.max_steps / 60)
    estimate = {"minutes": minutes, "peak_memory_mb": float(peak_memory_mb())}
    log.info("expected: %.1f minutes of training, peak memory about %.0f MB", *estimate.values())
    return estimate
