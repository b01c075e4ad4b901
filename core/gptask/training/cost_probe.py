"""Measure a few batches before training to forecast its cost; weights and random state are left unchanged."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from gptask.data.datamodule import PaddedBatch
from gptask.model.generation.generate import MAX_KV_BYTES, generate
from gptask.model.heads import GenerationHead
from gptask.plugins.generation_options import GenerationOptions
from gptask.runs.provenance import memory_limit_mb, peak_memory_mb
from gptask.training import optim
from gptask.training.batch_trial import largest_batch, measure, training_pass, unchanged
from gptask.training.module import GPTModule
from gptask.training.task_runtime import BatchTrial, TaskRuntime

log = logging.getLogger("gptask")
PROBE_TOKENS = 2048  # most tokens of a batch of validation or test that is measured
PROBE_ROWS, PROBE_STEPS = 64, 8  # rows that are decoded, and the steps that are timed
WRITTEN_BYTES = 2**25  # written to the run folder to time its disk
# The C library keeps what batches of other shapes have freed: in the presets 1.1 times the peak of the first batches
# after 200 steps, hardly more after 600 (tests/benchmarks/forecast.py)
MAX_HEAP_GROWTH, HEAP_STEPS = 1.0, 100.0
STATE_BYTES = 12  # of a trained weight and AdamW's two moments, in float32


@dataclass
class Forecast:
    """The seconds that each part of a run takes, and its peak memory in MiB."""

    training: float = 0.0
    validation: float = 0.0
    test: float = 0.0
    checkpoints: float = 0.0
    peak_memory_mb: float = 0.0
    unknown: list[str] = field(default_factory=list)  # what the forecast leaves out

    @property
    def total(self) -> float:
        """The seconds of all parts."""
        return self.training + self.validation + self.test + self.checkpoints

    def __str__(self) -> str:
        parts = ("training", "validation", "test", "checkpoints")
        shares = ", ".join(f"{name} {getattr(self, name) / 60:.1f}" for name in parts)
        text = f"expected: {self.total / 60:.1f} minutes from here ({shares}), "
        text += f"peak memory about {self.peak_memory_mb:.0f} MB"
        return f"{text}; not known: {', '.join(self.unknown)}" if self.unknown else text


def probe_cost(
    module: GPTModule, trainer: pl.Trainer, folder: Path, passes: Sequence[float] = (1.0,)
) -> Forecast | None:
    """Time a few batches of each task's splits, the largest training batch among them; log and return the forecast.

    ``passes`` is how often an epoch goes through each task's data; checkpoints go to ``folder``. No weight is changed,
    gradients are dropped and the random state is restored. Returns None without measuring for a plugin's own batches,
    which have no known costs, and elsewhere than on the CPU.
    """
    on_cpu = isinstance(trainer.accelerator, pl.accelerators.CPUAccelerator)
    trials = [on_cpu and (runtime.trial or largest_batch(module, runtime)) for runtime in module.runtimes]
    measurable = [trial for trial in trials if trial]
    if len(measurable) < len(trials):
        return None
    forecast, pages = Forecast(), 0.0
    epochs, batches = _trained_epochs(trainer, module.runtimes, passes)
    steps = epochs * batches / trainer.accumulate_grad_batches
    with unchanged(module, module.device):
        for runtime, share, trial in zip(module.runtimes, passes, measurable, strict=True):
            forecast.training += epochs * share * _training_seconds(module, trainer, runtime, trial, epochs)
            pages += sum(cache.table.nbytes for cache in runtime.activation_caches.values() if cache)
        forecast.training += steps * _step_seconds(module, trainer)
        train_peak = peak_memory_mb()
        module.zero_grad(set_to_none=True)
        module.eval()
        validations = _validations(trainer, epochs, batches)
        forecast.validation, validation_kv = _seconds_of_split(
            module, "validation", trainer.limit_val_batches, validations
        )
        forecast.test, test_kv = _seconds_of_split(module, "test", trainer.limit_test_batches, 1.0)
    checkpoint_bytes = STATE_BYTES * sum(p.numel() for p in module.parameters() if p.requires_grad)
    forecast.checkpoints = 2 * validations * _write_seconds(folder, checkpoint_bytes)  # the best and the last
    growth = 1 + min(MAX_HEAP_GROWTH, steps / HEAP_STEPS)
    forecast.peak_memory_mb = (
        max(growth * train_peak, peak_memory_mb() + max(validation_kv, test_kv) / 2**20) + pages / 2**20
    )
    forecast.unknown = _unknown(trainer, module.runtimes)
    _log_forecast(forecast)
    return forecast


def _log_forecast(forecast: Forecast) -> None:
    """Log a forecast, and a warning where its memory is more than there is."""
    log.info("%s", forecast)
    limit = memory_limit_mb()
    if limit is not None and forecast.peak_memory_mb > limit:
        log.warning(
            "the expected peak memory of %.0f MB is more than the %d MB that this process can get: the system may kill "
            "it; lower data.batch_tokens or data.max_tokens", forecast.peak_memory_mb, limit,
        )  # fmt: skip


def _seconds_of_split(module: GPTModule, split: str, limit: float, passes: float) -> tuple[float, float]:
    """Seconds of ``passes`` of all tasks through a split, of which the trainer takes a share if ``limit`` is a float.

    Also the bytes of keys and values of the largest decoded batch.
    """
    with torch.inference_mode():
        costs = [_evaluation_seconds(module, runtime, split, passes) for runtime in module.runtimes]
    used = limit if isinstance(limit, float) else 1.0
    return used * sum(seconds for seconds, _ in costs), max(kv_bytes for _, kv_bytes in costs)


def _trained_epochs(
    trainer: pl.Trainer, runtimes: Sequence[TaskRuntime], passes: Sequence[float]
) -> tuple[float, float]:
    """The epochs of the training, a last one in part, and the batches of each."""
    batches = sum(share * len(runtime.data.train_dataloader()) for runtime, share in zip(runtimes, passes, strict=True))
    limit = trainer.limit_train_batches
    used = min(batches, limit) if isinstance(limit, int) else batches * limit
    epochs = float(trainer.max_epochs) if trainer.max_epochs and trainer.max_epochs > 0 else float("inf")
    if trainer.max_steps > 0:
        epochs = min(epochs, trainer.max_steps * trainer.accumulate_grad_batches / max(used, 1))
    return (epochs if epochs < float("inf") else 1.0) * used / max(batches, 1), batches


def _validations(trainer: pl.Trainer, epochs: float, batches: float) -> float:
    """How often the training validates."""
    if not trainer.limit_val_batches:
        return 0.0
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int):
        return epochs * batches // interval
    return max(1.0, epochs // (every or 1)) / float(interval or 1.0)


def _training_seconds(
    module: GPTModule, trainer: pl.Trainer, runtime: TaskRuntime, trial: BatchTrial, epochs: float
) -> float:
    """Seconds of one pass through a task's training batches, the mean of ``epochs``, without optimizer steps.

    With an activation cache the first epoch fills it and later epochs read from it.
    """
    trial = trial if trial is runtime.trial else measure(module, trainer, runtime, trial)
    runtime.trial = None  # it holds an epoch's batches
    costs = trial.loader.batch_sampler.costs
    by_cost = sorted(range(len(costs)), key=costs.__getitem__)
    others = [by_cost[len(by_cost) // 2], by_cost[len(by_cost) // 4]]
    seconds = [trial.seconds, *(training_pass(module, trainer, runtime, trial.loader, number) for number in others)]
    first, later = (float(sum(column)) for column in zip(*seconds, strict=True))
    mean = (first + later * (epochs - 1)) / epochs if epochs > 1 else first
    return mean * float(sum(costs)) / float(trial.tokens + sum(costs[number] for number in others))


def _step_seconds(module: GPTModule, trainer: pl.Trainer) -> float:
    """Seconds of an optimizer step, which is made at a learning rate of 0 on the gradients that are there."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients or not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return 0.0  # a step on infinite gradients would change weights even so
    optimizer = optim.build_optimizer(module.optimizer, module)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()  # allocates its state
    start = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - start


def _evaluation_seconds(
    module: GPTModule, runtime: TaskRuntime, split: str, passes: float = 1.0
) -> tuple[float, float]:
    """Seconds of ``passes`` through a split, and the bytes of keys and values of its largest decoded batch.

    With an activation cache the first pass fills it and later passes read from it.
    """
    loader = runtime.data.eval_dataloader(split)
    sampler, head = loader.batch_sampler, runtime.head
    if not sampler.costs or not passes:
        return 0.0, 0.0
    middle = [loader.dataset[row] for row in sampler.batches[len(sampler.batches) // 2]]
    longest = max(item["length"] for item in middle)
    middle = middle[: max(1, PROBE_TOKENS // longest)]
    batch = loader.collate_fn(middle)
    cache = runtime.activation_caches.get(split)
    states, seconds = None, [0.0, 0.0, 0.0]  # the first pass warms up
    for number in range(3):
        start = time.perf_counter()
        if split == "validation" or not head.decodes:
            if cache:
                hidden, states = cache.compute_or_resume(batch, states if number == 2 else None)
            else:
                hidden = module.backbone.hidden(batch.input_ids, batch.lengths, head.needed_positions(batch))
            if split == "validation":
                head.loss(hidden, batch)
            if not head.decodes:
                head.predict(hidden, batch)
        seconds[number] = time.perf_counter() - start
    total = (seconds[1] + seconds[2] * (passes - 1)) * sum(sampler.costs) / (longest * len(middle))
    if not isinstance(head, GenerationHead):
        return total, 0.0
    decoding, kv_bytes = _decoding_seconds(module, runtime, split, batch)
    return total + passes * decoding, kv_bytes


def _decoding_seconds(module: GPTModule, runtime: TaskRuntime, split: str, batch: PaddedBatch) -> tuple[float, float]:
    """Seconds of decoding a split as long as its references are, and the bytes of keys and values of a batch.

    A step of B rows takes a + bB seconds; a, b and the time of reading a prompt's token are measured.
    """
    options: GenerationOptions = runtime.head.options  # type: ignore[assignment]
    prompts = (batch.prompts() * PROBE_ROWS)[:PROBE_ROWS]

    def seconds(rows: int, steps: int) -> float:
        timed_options = replace(options, max_new_tokens=steps, min_new_tokens=steps, stop=[])
        start = time.perf_counter()
        generate(module.backbone, prompts[:rows], timed_options)
        return time.perf_counter() - start

    seconds(PROBE_ROWS, 2)  # packs the weights
    many_steps, one_step, few_rows = seconds(PROBE_ROWS, 1 + PROBE_STEPS), seconds(PROBE_ROWS, 1), seconds(8, 1)
    step_of_many = max(many_steps - one_step, 1e-6) / PROBE_STEPS
    step_of_few = max(seconds(8, 1 + PROBE_STEPS) - few_rows, 1e-6) / PROBE_STEPS
    per_row = max(0.0, step_of_many - step_of_few) / (PROBE_ROWS - 8)
    per_step = max(0.0, step_of_few - 8 * per_row)
    read = max(one_step, 1e-6) / sum(map(len, prompts))
    items = runtime.data.items(split)
    copies = options.samples * options.num_beams
    lengths = np.minimum(items.lengths("target"), options.limit)
    prompt_lengths = items.column("length") - items.lengths("target")
    total, kv_bytes = 0.0, 0.0
    for rows in runtime.data.eval_dataloader(split).batch_sampler.batches:
        total += read * float(prompt_lengths[rows].sum())
        total += per_step * float(lengths[rows].max()) + per_row * copies * float(lengths[rows].sum())
        positions = float((prompt_lengths[rows] + options.limit).sum()) * copies
        kv_bytes = max(kv_bytes, min(float(MAX_KV_BYTES), positions * module.backbone.engine.position_bytes()))
    return total, kv_bytes


def _write_seconds(folder: Path, size: float) -> float:
    """Seconds that a file of ``size`` bytes takes to write to ``folder``."""
    file = folder / f".probe.{os.getpid()}"
    start = time.perf_counter()
    try:
        file.write_bytes(bytes(WRITTEN_BYTES))
        return (time.perf_counter() - start) * size / WRITTEN_BYTES
    finally:
        file.unlink(missing_ok=True)


def _unknown(trainer: pl.Trainer, runtimes: Sequence[TaskRuntime]) -> list[str]:
    """What decides the cost and cannot be known before."""
    unknown = []
    if any(isinstance(callback, pl.callbacks.EarlyStopping) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        unknown.append("when early stopping ends the training")
    if any(runtime.head.decodes for runtime in runtimes):
        unknown.append("how long the generated texts become")
    if any(runtime.head.decodes and not isinstance(runtime.head, GenerationHead) for runtime in runtimes):
        unknown.append("what a plugin's own decoding takes")
    return unknown
