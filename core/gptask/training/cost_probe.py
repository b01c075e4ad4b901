"""Measure a few batches before training to estimate its cost; weights and random state are left unchanged."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from gptask.runs.provenance import peak_memory_mb
from gptask.training.module import GPTModule
from gptask.training.task_runtime import TaskRuntime

log = logging.getLogger("gptask")


def probe_cost(module: GPTModule, trainer: pl.Trainer, passes: Sequence[float] = (1.0,)) -> dict[str, float] | None:
    """Time forward and backward on a few batches of each task, its largest among them; return minutes and peak MB.

    ``passes`` is how often an epoch goes through each task's data. Nothing is optimized, gradients are dropped and the
    random state is restored. Returns None without measuring for a plugin's own data module, whose batches have no
    known costs, and elsewhere than on the CPU, where the model has not been moved to its device yet.
    """
    loaders = [runtime.data.train_dataloader() for runtime in module.runtimes]
    samplers = [getattr(loader, "batch_sampler", None) for loader in loaders]
    if not all(hasattr(sampler, "batches") for sampler in samplers):
        return None
    if not isinstance(trainer.accelerator, pl.accelerators.CPUAccelerator):
        return None
    random_state = torch.get_rng_state()
    module.train()
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
    epoch_seconds = 0.0
    for runtime, loader, share in zip(module.runtimes, loaders, passes, strict=True):
        first, later = _seconds_per_token(module, trainer, runtime, loader)
        epoch_seconds += share * sum(loader.batch_sampler.costs) * (first + later * (epochs - 1)) / epochs
    torch.set_rng_state(random_state)
    used_share = trainer.limit_train_batches if isinstance(trainer.limit_train_batches, float) else 1.0
    minutes = epoch_seconds * used_share * epochs / 60
    if trainer.max_steps > 0:
        batches = sum(len(loader) * share for loader, share in zip(loaders, passes, strict=True))
        minutes = min(minutes, epoch_seconds / batches * trainer.max_steps / 60)
    estimate = {"minutes": minutes, "peak_memory_mb": float(peak_memory_mb())}
    log.info("expected: %.1f minutes of training, peak memory about %.0f MB", *estimate.values())
    return estimate


def _seconds_per_token(
    module: GPTModule, trainer: pl.Trainer, runtime: TaskRuntime, loader: Any
) -> tuple[float, float]:
    """Seconds per padded token of a task's training batches, in the first epoch and in later ones.

    With an activation cache the first epoch fills it and later epochs read from it.
    """
    costs = loader.batch_sampler.costs
    by_cost = sorted(range(len(costs)), key=costs.__getitem__)
    measured = [by_cost[-1], by_cost[len(by_cost) // 2], by_cost[len(by_cost) // 4]]
    cache = runtime.activation_caches.get("train")
    seconds, tokens = [0.0, 0.0], 0.0
    for position, number in enumerate([by_cost[0], *measured]):
        batch = loader.collate_fn([loader.dataset[row] for row in loader.batch_sampler.batches[number]])
        states = None
        for epoch in range(2 if cache else 1):
            start = time.perf_counter()
            with trainer.precision_plugin.train_step_context():
                if cache:
                    hidden, states = cache.compute_or_resume(batch, states)
                else:
                    needed = runtime.head.needed_positions(batch)
                    hidden = module.backbone.hidden(batch.input_ids, batch.lengths, needed)
                loss = runtime.head.loss(hidden, batch)
            if loss.requires_grad:
                torch.autograd.backward(loss)
            if position > 0:  # the first batch only warms up
                seconds[epoch] += time.perf_counter() - start
            module.zero_grad(set_to_none=True)
        tokens += costs[number] if position > 0 else 0
    first, later = seconds
    return first / tokens, (later if cache else first) / tokens
