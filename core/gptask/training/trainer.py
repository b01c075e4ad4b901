"""The Lightning trainer as gptask sets it up."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping, Timer

from gptask.config.schemas import Train
from gptask.errors import UserError
from gptask.training import loggers, private
from gptask.training.callbacks import progress_bar
from gptask.training.checkpoint_files import INTERRUPTED
from gptask.training.checkpoints import (
    BestCheckpoint,
    DurableCheckpointIO,
    LastCheckpoint,
    SaveOnInterrupt,
    TimedCheckpoint,
    finite_or_worst,
)
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
    if plugins := options.get("plugins"):
        own = arguments.get("plugins", [])
        options = options | {"plugins": [*own, *(plugins if isinstance(plugins, list | tuple) else [plugins])]}
    try:
        trainer = pl.Trainer(**(settings | arguments | options))
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"the trainer refuses its options {options}: {error}") from error
    if trainer.world_size > 1 and not private.starts_commands(trainer):
        raise UserError(
            f"trainer.strategy={options.get('strategy')}: forked or spawned processes know nothing of the run; "
            "with trainer.strategy=ddp they run its command again"
        )
    return trainer


def process_count(options: dict[str, Any]) -> int:
    """The number of processes in which a trainer with these options works."""
    return int(build_trainer(Path(), options, logger=False).world_size)


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
        LastCheckpoint(checkpoints, "last", enable_version_counter=False, every_n_epochs=1),
        SaveOnInterrupt(checkpoints / INTERRUPTED),
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
    if config.checkpoint.minutes is not None:
        all_callbacks.append(TimedCheckpoint(checkpoints, config.checkpoint.minutes))
    logger, writer = loggers.csv_logger(folder), DurableCheckpointIO()
    trainer = build_trainer(folder, config.trainer, logger=logger, callbacks=all_callbacks, plugins=[writer])
    # ResumePoint asks whether the time is over
    trainer.callbacks.sort(key=lambda callback: not isinstance(callback, Timer))  # type: ignore[attr-defined]
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
