"""A few steps before training, to tell what it will cost; weights and random state are as before afterwards."""

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
    random state is restored. Only core's data module can be probed (another's batches are not ours to count);
    elsewhere than on the CPU the model is not moved yet.
    """
    loaders = [seat.data.train_dataloader() for seat in module.seats]
    samplers = [getattr(loader, "batch_sampler", None) for loader in loaders]
    if not all(hasattr(sampler, "batches") for sampler in samplers):
        return None
    if not isinstance(trainer.accelerator, pl.accelerators.CPUAccelerator):
        return None
    state = torch.get_rng_state()
    module.train()
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
    seconds = []
    for seat, loader, share in zip(module.seats, loaders, passes, strict=True):
        first, later = _seconds(module, trainer, seat, loader)
        seconds.append(share * sum(loader.batch_sampler.costs) * (first + later * (epochs - 1)) / epochs)
    torch.set_rng_state(state)
    part = float(trainer.limit_train_batches if isinstance(trainer.limit_train_batches, float) else 1)
    minutes = sum(seconds) * part * epochs / 60
    if trainer.max_steps > 0:
        batches = sum(len(loader) * share for loader, share in zip(loaders, passes, strict=True))
        minutes = min(minutes, sum(seconds) / batches * trainer.max_steps / 60)
    estimate = {"minutes": minutes, "peak_memory_mb": float(peak_memory_mb())}
    log.info("expected: %.1f minutes of training, peak memory about %.0f MB", *estimate.values())
    return estimate


def _seconds(module: GPTModule, trainer: pl.Trainer, seat: TaskRuntime, loader: Any) -> tuple[float, float]:
    """Seconds per padded token of a task's training batches in the first epoch, and in later ones, which read the
    states that the first one kept."""
    sizes = loader.batch_sampler.costs
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    picked = [order[-1], order[len(order) // 2], order[len(order) // 4]]
    kept = seat.states.get("train")
    seconds, tokens = [0.0, 0.0], 0.0
    for warm, number in enumerate([order[0], *picked]):  # the first one only warms up
        batch = loader.collate_fn([loader.dataset[row] for row in loader.batch_sampler.batches[number]])
        states = None
        for turn in range(2 if kept else 1):
            start = time.perf_counter()
            with trainer.precision_plugin.train_step_context():
                if kept:
                    hidden, states = kept.read(batch, states)
                else:
                    hidden = module.backbone.hidden(batch.input_ids, batch.lengths, seat.head.needed_positions(batch))
                loss = seat.head.loss(hidden, batch)
            if loss.requires_grad:
                loss.backward()
            if warm:
                seconds[turn] += time.perf_counter() - start
            module.zero_grad(set_to_none=True)
        tokens += sizes[number] if warm else 0
    first, later = seconds
    return first / tokens, (later if kept else first) / tokens
