"""A training whose loss or gradients are not finite any more is stopped before its weights are used."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor

from gptask.config.schemas import Train
from gptask.errors import UserError

KNOWN_PRECISIONS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)  # clip as torch does
READ_EVERY = 10  # numbers that wait on a GPU before they are read together


class Diverged(Exception):
    """The loss or the norm of the gradients is not finite."""

    def __init__(self, name: str, value: float, step: int) -> None:
        super().__init__(f"the {name} is {value} at step {step}")
        self.step = step


class TrainingDiverged(UserError):
    """A training diverged, with options that would not let it."""


class DivergenceCheck:
    """Raises `Diverged` for a number that is not finite: at once on a CPU, where reading one costs microseconds.

    On a GPU, where it would wait for the work that is queued, several are read together.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[str, int, Tensor]] = []

    def add(self, name: str, value: Tensor, step: int) -> None:
        """Check a scalar tensor of an optimizer step, counted from 1."""
        self._unread.append((name, step, value.detach()))
        if value.device.type == "cpu" or len(self._unread) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Check what has not been read yet; to be called before weights are validated or saved."""
        unread, self._unread = self._unread, []
        numbers = torch.stack([value.float() for _, _, value in unread]).tolist() if unread else []
        for (name, step, _), number in zip(unread, numbers, strict=True):
            if not math.isfinite(number):
                raise Diverged(name, number, step)


def clip_gradients(module: Any, optimizer: torch.optim.Optimizer, limit: float | None, by: str | None) -> Tensor | None:
    """Clip the gradients as the trainer would; return their norm before, None where it need not be finite.

    That is with loss scaling, which skips steps of gradients that are not, and under strategies that shard gradients.
    """
    plugin = module.trainer.precision_plugin
    checked = type(plugin) in KNOWN_PRECISIONS and getattr(plugin, "scaler", None) is None
    if checked and limit and by in (None, "norm"):
        return torch.nn.utils.clip_grad_norm_(plugin.main_params(optimizer), limit)
    gradients = [p.grad for p in plugin.main_params(optimizer) if p.grad is not None] if checked else []
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
    module.clip_gradients(optimizer, gradient_clip_val=limit, gradient_clip_algorithm=by)
    return norm


def with_advice(diverged: Diverged, config: Train) -> TrainingDiverged:
    """The error for the user: what happened, and which options to change."""
    precision, clip = config.trainer.get("precision"), config.trainer.get("gradient_clip_val")
    lr_name = "tuning.lr" if config.optimizer.lr == config.tuning.lr else "optimizer.lr"
    options = [f"lower {lr_name} (it is {config.optimizer.lr:g})"]
    if diverged.step == 1:  # no weight has changed yet
        options = ["look whether the backbone's weights are sound"]
    elif clip:
        options += [f"lower trainer.gradient_clip_val (it is {clip:g})"]
    else:
        options += ["set trainer.gradient_clip_val=1.0"]
    if precision not in (None, 32, "32", "32-true"):
        options += [f"set trainer.precision=32-true (it is {precision})"]
    return TrainingDiverged(f"the training diverged: {diverged}. Start another run and {', or '.join(options)}")
