"""Optimizer and learning-rate schedule from their configs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gptask.config.schemas import SGD, AdamW, Schedule, ScheduleName
from gptask.errors import UserError


def build_optimizer(options: AdamW | SGD, module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the module's trainable parameters.

    Weight decay applies to matrices, embeddings and LoRA's factors included, and not to vectors (norms and biases).
    Raises `UserError` where nothing can be trained and for options out of range.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise UserError(
            "nothing to train: tuning=head trains only the task's head, and this head has no weights; set tuning=lora"
        )
    if options.lr is None or options.lr <= 0:
        raise UserError(f"optimizer.lr={options.lr} must be a number above 0")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    try:
        shared: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
        if isinstance(options, SGD):
            return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **shared)
        beta1, beta2 = options.betas
        optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=options.eps, fused=True, **shared)
        optimizer._step_supports_amp_scaling = False  # mixed precision unscales before clipping, not in the step
        return optimizer
    except ValueError as error:
        raise UserError(f"optimizer={options} is out of range: {error}") from error


def schedule_factor(schedule: Schedule, total: float) -> Callable[[int], float]:
    """Factor on the learning rate at a step: warm-up, then linear or half-cosine decay to 0, or constant.

    ``total`` counts the steps of the training; a training without end (infinite) can only be constant, with warm-up
    in steps. Raises `UserError` for another schedule then, and for a negative warm-up.
    """
    if schedule.warmup < 0:
        raise UserError(f"schedule.warmup={schedule.warmup} must be 0 or more (a share below 1, or steps)")
    if math.isinf(total) and (schedule.name is not ScheduleName.constant or 0 < schedule.warmup < 1):
        raise UserError(
            f"schedule.name={schedule.name.value} with warmup={schedule.warmup} needs to know where training ends: set "
            "trainer.max_epochs or trainer.max_steps, or schedule.name=constant with schedule.warmup=<steps>"
        )
    warmup = round(schedule.warmup * total) if 0 < schedule.warmup < 1 else int(schedule.warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if schedule.name is ScheduleName.constant:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 1.0 - progress if schedule.name is ScheduleName.linear else 0.5 * (1 + math.cos(math.pi * progress))

    return factor
