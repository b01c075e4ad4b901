"""Try the largest training batch before a schedule is chosen; where memory runs out, take smaller batches."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from gptask.config.schemas import AdamW, Train
from gptask.config.trainer_options import TRAINING_LIMITS
from gptask.data.batches import BatchesByLength
from gptask.data.datamodule import DataModule
from gptask.errors import UserError
from gptask.model.out_of_memory import free_memory, is_out_of_memory
from gptask.runs.config_file import read_config
from gptask.runs.folder import is_main_process, resume_hint
from gptask.training.builder import option_prefix, task_configs, with_task_configs
from gptask.training.divergence import KNOWN_PRECISIONS
from gptask.training.module import GPTModule
from gptask.training.resolve import ChosenOption
from gptask.training.task_runtime import BatchTrial, TaskRuntime
from gptask.training.trainer import build_trainer

WHOLE_MODEL = (SingleDeviceStrategy, DDPStrategy)  # strategies by which a device holds the whole model
LOGIT_BYTES = 12  # of a logit, its log-probability and its gradient


def fit_batches(config: Train, module: GPTModule) -> tuple[Train, list[ChosenOption]]:
    """Return the config with a ``data.batch_tokens`` whose batches fit into memory, for each task, and what changed.

    The module is moved to the device that trains it, and computes its largest batch there beside the gradients and the
    optimizer's state. Weights, gradients, buffers, modes and random states stay as they are. A plugin's own batches,
    which have no known costs, are not tried, and neither is a model that is shared out among devices. A training of no
    step tries none.
    Raises `UserError` where a single example does not fit, and where a run that goes on does not.
    """
    if any(config.trainer.get(name) == 0 for name in TRAINING_LIMITS):
        return config, []
    trainer = build_trainer(
        Path(config.outputs), config.trainer | {"max_epochs": 1}, logger=False, enable_checkpointing=False
    )
    if not _can_try(trainer):
        return config, []
    device, started_with = trainer.strategy.root_device, _tokens_of_first_process(config)
    with _refusing_model(config, device):
        trainer.accelerator.setup_device(device)
        trainer.precision_plugin.convert_module(module)
        module.to(device)
    with unchanged(module, device):
        with _refusing_model(config, device):
            reserved = _reserve(config, module, trainer.world_size)
        for runtime in (runtime for runtime in module.runtimes if isinstance(runtime.data, DataModule)):
            _set_tokens(runtime, started_with or runtime.data.options.batch_tokens)
            while trial := largest_batch(module, runtime):
                if _fits(config, module, trainer, runtime, trial, fixed=started_with is not None):
                    break
            _set_tokens(runtime, _lowest_of_all(trainer, runtime.data.options.batch_tokens))
        del reserved
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return _with_tokens(config, module)


def _with_tokens(config: Train, module: GPTModule) -> tuple[Train, list[ChosenOption]]:
    """The config with the ``data.batch_tokens`` that the data modules have now, and those that differ."""
    tasks, chosen = dict(task_configs(config)), []
    for runtime in (runtime for runtime in module.runtimes if isinstance(runtime.data, DataModule)):
        before, tokens = tasks[runtime.name].data, runtime.data.options.batch_tokens
        if tokens != before.batch_tokens:
            name = f"{option_prefix(config, runtime.name)}data.batch_tokens"
            chosen.append(ChosenOption(name, tokens, f"batches of {before.batch_tokens} tokens run out of memory"))
            tasks[runtime.name] = replace(tasks[runtime.name], data=replace(before, batch_tokens=tokens))
    return with_task_configs(config, tasks), chosen


def _can_try(trainer: pl.Trainer) -> bool:
    """Whether the training holds the whole model on one device, in a number format that is known."""
    strategy = trainer.strategy
    known = type(strategy) in WHOLE_MODEL and type(trainer.precision_plugin) in KNOWN_PRECISIONS
    # processes that are forked later can't use a GPU that this one has used
    forks = strategy.root_device.type == "cuda" and strategy.launcher and strategy.launcher.is_interactive_compatible
    return known and not forks


@contextmanager
def unchanged(module: GPTModule, device: torch.device) -> Iterator[None]:
    """Drop gradients in the end, and restore modes, buffers and the random states of the CPU and the device."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        module.zero_grad(set_to_none=True)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for part, mode in modes:
            part.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)


def _reserve(config: Train, module: GPTModule, processes: int) -> list[Tensor]:
    """Allocate gradients, and return as much memory as the optimizer keeps for each trained weight.

    That is AdamW's two moments or SGD's momentum, and with several processes a copy of the gradients to exchange them.
    Nothing is written there: it takes no time, and on a CPU no more than addresses.
    """
    optimizer = config.optimizer
    copies = 2 if isinstance(optimizer, AdamW) else int(optimizer.momentum > 0)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    return [torch.empty_like(parameter) for parameter in trained for _ in range(copies + (processes > 1))]


@contextmanager
def _refusing_model(config: Train, device: torch.device) -> Iterator[None]:
    """Raise `UserError` where not even the model and its optimizer fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the weights with their gradients and the optimizer's state do not fit into the memory of {device}: "
            f"{_ways_out(config)}"
        ) from error


def _ways_out(config: Train) -> str:
    """What makes a training smaller, whatever its batches are."""
    tuning = type(config.tuning).__name__.removesuffix("Only").lower()
    return (
        f"train fewer weights (tuning=lora or tuning=head; it is {tuning}), or take a smaller backbone (backbone=...)"
    )


def _fits(
    config: Train, module: GPTModule, trainer: pl.Trainer, runtime: TaskRuntime, trial: BatchTrial, fixed: bool
) -> bool:
    """Whether a task's largest batch fits; where not, its batches get half the tokens.

    Raises `UserError` where they can't, as they are ``fixed`` or have one example.
    """
    on_cpu = trainer.strategy.root_device.type == "cpu"
    try:
        if config.probe and on_cpu and not config.resume:
            runtime.trial = measure(module, trainer, runtime, trial)
        else:
            training_pass(module, trainer, runtime, trial.loader, trial.number, once=True)
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        options = runtime.data.options
        lower = max(1, min(options.batch_tokens, trial.tokens) // 2)
        if problem := _why_final(config, trainer, trial, options, lower, fixed):
            raise UserError(problem) from error
        free_memory(error)
    _set_tokens(runtime, lower)
    return False


def _why_final(
    config: Train, trainer: pl.Trainer, trial: BatchTrial, options: Any, lower: int, fixed: bool
) -> str | None:
    """Why a batch that does not fit can't be smaller, and what to do; None if it can."""
    device, rows = trainer.strategy.root_device, len(trial.lengths)
    batch = f"a training batch of {rows} examples and {trial.tokens} tokens does not fit into the memory of {device}"
    if config.resume:
        return (
            f"{batch}, and {config.resume} goes on with the batches that it started with (data.batch_tokens="
            f"{options.batch_tokens}): resume it where more memory is free, or start another run"
        )
    if rows == 1:
        return (
            f"one training example of {trial.tokens} tokens does not fit into the memory of {device}: lower "
            f"data.max_tokens (it is {options.max_tokens}), {_ways_out(config)}"
        )
    if fixed:
        return f"{batch} of process {trainer.global_rank}; in that of process 0 it does: set data.batch_tokens={lower}"
    return None


def _set_tokens(runtime: TaskRuntime, tokens: int) -> None:
    if tokens != runtime.data.options.batch_tokens:
        runtime.data.options, runtime.trial = replace(runtime.data.options, batch_tokens=tokens), None


# --- several processes ----------------------------------------------------------------------------------------------


def _tokens_of_first_process(config: Train) -> int | None:
    """The ``data.batch_tokens`` that process 0 wrote down before it started this one, None where it did not."""
    folder = os.environ.get("GPTASK_RUN_FOLDER")
    if is_main_process() or folder is None or config.tasks:
        return None
    return int(read_config(folder)["data"]["batch_tokens"])


def _lowest_of_all(trainer: pl.Trainer, tokens: int) -> int:
    """The lowest ``data.batch_tokens`` of all processes, where another program started them side by side."""
    strategy: Any = trainer.strategy
    started_by_us = "GPTASK_RUN_FOLDER" in os.environ and not is_main_process()
    if trainer.world_size == 1 or started_by_us or not strategy.cluster_environment.creates_processes_externally:
        return tokens
    strategy.setup_environment()  # joins the process group, which the training finds then
    return int(strategy.reduce(torch.tensor(tokens, device=strategy.root_device), reduce_op="min"))


# --- a batch --------------------------------------------------------------------------------------------------------


def largest_batch(module: GPTModule, runtime: TaskRuntime) -> BatchTrial | None:
    """The training batch whose activations take the most memory; None where a plugin's own data makes the batches.

    By Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) a layer keeps about ``34 C + 5 A T`` bytes a token, with
    A heads. To that come the logits of target tokens, if the engine keeps them.
    """
    loader = runtime.data.train_dataloader() if isinstance(runtime.data, DataModule) else None
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, BatchesByLength):
        return None
    backbone, config = module.backbone, module.backbone.config
    targets = runtime.data.items("train").lengths("target") if backbone.engine.keeps_logits else np.zeros(0)
    heads = getattr(config, "num_attention_heads", 1)

    def activation_bytes(rows: Sequence[int], tokens: int) -> float:
        longest = float(sampler.lengths[rows].max())
        logits = float(targets[rows].sum()) * config.vocab_size if len(targets) == len(sampler.lengths) else 0.0
        layers = config.num_hidden_layers * tokens * (34 * backbone.channels + 5 * heads * longest)
        return float(layers + LOGIT_BYTES * logits)

    sizes = list(map(activation_bytes, sampler.batches, sampler.costs))
    return BatchTrial(loader, int(np.argmax(sizes)))


def measure(module: GPTModule, trainer: pl.Trainer, runtime: TaskRuntime, trial: BatchTrial) -> BatchTrial:
    """The trial with its seconds; the smallest batch of the loader warms up before."""
    costs = trial.loader.batch_sampler.costs
    training_pass(module, trainer, runtime, trial.loader, int(np.argmin(costs)))
    return replace(trial, seconds=training_pass(module, trainer, runtime, trial.loader, trial.number))


def training_pass(
    module: GPTModule, trainer: pl.Trainer, runtime: TaskRuntime, loader: Any, number: int, once: bool = False
) -> tuple[float, float]:
    """Compute a training batch and add to the gradients; return its seconds in the first epoch and in later ones.

    Where hidden states are cached, the pass fills the cache with those of the batch, as the first epoch would, and a
    second one reads them, unless ``once`` is enough.
    """
    batch = loader.collate_fn([loader.dataset[row] for row in loader.batch_sampler.batches[number]])
    batch = trainer.precision_plugin.convert_input(batch).to(module.device)
    cache = runtime.activation_caches.get("train")
    seconds = []
    for _ in range(2 if cache and not once else 1):
        start = time.perf_counter()
        with trainer.precision_plugin.train_step_context():
            if cache:
                hidden = cache.hidden(batch)
            else:
                needed = runtime.head.needed_positions(batch)
                hidden = module.backbone.hidden(batch.input_ids, batch.lengths, needed)
            loss = runtime.training_loss(hidden, batch)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[-1]


# --- in the training ------------------------------------------------------------------------------------------------


@contextmanager
def memory_advice(trainer: pl.Trainer, config: Train, folder: Path) -> Iterator[None]:
    """Turn what a training raises where memory runs out, after a trial that went well, into a `UserError`."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        name = "tasks.<name>.data.batch_tokens" if config.tasks else "data.batch_tokens"
        is_now = "" if config.tasks else f" (it is {config.data.batch_tokens})"
        raise UserError(
            f"memory ran out at step {trainer.global_step}: free memory that other programs use, or start another run "
            f"with a lower {name}{is_now}. {resume_hint(folder)}"
        ) from error
