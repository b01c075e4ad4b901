"""The Lightning trainer as gptask sets it up."""

from __future__ import annotations

import gc
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from gptask.config.schemas import Train
from gptask.errors import UserError
from gptask.training import loggers
from gptask.training.callbacks import SaveOnInterrupt, progress_bar
from gptask.training.resume_point import ResumePoint

IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*logging interval.*",
    ".*LeafSpec.*",
    ".*could not find the monitored.*",  # train.py warns when no validation ran
    ".*sync_dist=True.*",  # every process scores everything
    ".*in eval mode at the start of training.*",  # intended with tuning=head
    ".*your dataloader is not resumable.*",
)


class PortableCheckpoint(ModelCheckpoint):
    """Names its files in a checkpoint relative to their folder, so that a moved run folder finds them."""

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state with file names in place of paths."""
        return _with_paths(super().state_dict(), lambda path: Path(path).name) | {"dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Look for the files in the folder of today."""
        folder = str(self.dirpath)
        super().load_state_dict(_with_paths(state_dict, lambda name: str(Path(folder, name))) | {"dirpath": folder})


def _with_paths(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A checkpoint callback's state with every path changed that is not empty."""
    paths = {name: change(path) for name, path in state.items() if name.endswith("_path") and path}
    return state | paths | {"best_k_models": {change(path): score for path, score in state["best_k_models"].items()}}


class BestCheckpoint(PortableCheckpoint):
    """Keeps the best epoch; among equally good ones the last, whose learning rate has fallen further.

    A small validation set often has several equally good epochs. A value that is not finite counts as the worst.
    Weights that no validation has seen are not compared: the last value would be that of others.
    """

    _validated_step = -1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the weights that were validated."""
        self._validated_step = trainer.global_step
        super().on_validation_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Any = None) -> bool:
        """Whether an epoch replaces the one that is kept."""
        if current is None or self._validated_step != trainer.global_step:
            return False
        current = finite_or_worst(current, self.mode)
        best = self.best_k_models.get(self.kth_best_model_path)
        equally_good = best is not None and bool(current == best)
        return equally_good or super().check_monitor_top_k(trainer, current)


class Patience(EarlyStopping):
    """Early stopping by the patience of today, also after a resume; a value that is not finite counts as the worst."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was counted."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no more where that was decided before the run was stopped."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= max(self.patience, 1)

    def _evaluate_stopping_criteria(self, current: torch.Tensor) -> tuple[bool, str | None]:
        return super()._evaluate_stopping_criteria(finite_or_worst(current, self.mode))


def finite_or_worst(value: torch.Tensor, mode: str) -> torch.Tensor:
    """A logged value, or infinity in the worse direction where it is not finite."""
    worst = torch.full_like(value, math.inf if mode == "min" else -math.inf)
    return torch.where(value.isfinite(), value, worst)


def build_trainer(folder: Path, options: dict[str, Any], **arguments: Any) -> pl.Trainer:
    """A trainer with gptask's settings and ``arguments``, the user's ``options`` over them."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    settings: dict[str, Any] = {
        "default_root_dir": str(folder),
        "enable_model_summary": False,
        "enable_progress_bar": "callbacks" in arguments,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 5,
        "use_distributed_sampler": False,  # gptask's batch sampler divides the batches among processes itself
        "reload_dataloaders_every_n_epochs": 1,  # every epoch has new batches by length
    }
    try:
        return pl.Trainer(**(settings | arguments | options))
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"the trainer refuses its options {options}: {error}") from error


def build_training_trainer(
    folder: Path, config: Train, callbacks: Sequence[pl.Callback], record: dict[str, Any]
) -> pl.Trainer:
    """The trainer of a training: with checkpoints, early stopping, progress, metrics.csv and the caller's callbacks.

    ``record`` is what each checkpoint says of the run's start (`resume.start_record`).
    """
    metric, mode = monitor(config)
    checkpoints = folder / "checkpoints"
    all_callbacks: list[pl.Callback] = [
        ResumePoint(record),  # first, as Lightning calls those that write checkpoints last
        BestCheckpoint(checkpoints, "best-{epoch}-{step}", enable_version_counter=False, monitor=metric, mode=mode),
        PortableCheckpoint(checkpoints, "last", enable_version_counter=False, every_n_epochs=1),  # for resume
        SaveOnInterrupt(checkpoints / "interrupted.ckpt"),
        progress_bar(),
        *callbacks,
    ]
    stopping = config.early_stopping
    if stopping.patience is not None:
        all_callbacks.append(
            Patience(
                monitor=metric, mode=mode, patience=stopping.patience, min_delta=stopping.min_delta, check_finite=False
            )
        )
    trainer = build_trainer(folder, config.trainer, logger=loggers.csv_logger(folder), callbacks=all_callbacks)
    if config.tasks and trainer.world_size > 1:
        raise UserError(f"several tasks train in one process, not in {trainer.world_size}: set trainer.devices=1")
    return trainer


def monitor(config: Train) -> tuple[str, str]:
    """The logged name of the metric that chooses the checkpoint, and whether its ``max`` or its ``min`` is best."""
    best = config.mixing.best if config.tasks else None
    if config.tasks and best is None:
        return "val/score", "max"
    main_metric = (config.tasks[best].task if best else config.task).metrics()[0]
    mode = "max" if main_metric.higher_is_better else "min"
    return f"val/{best}/{main_metric.name}" if best else f"val/{main_metric.name}", mode


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Freeze existing objects for the garbage collector (a full pass takes 0.3 s)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
