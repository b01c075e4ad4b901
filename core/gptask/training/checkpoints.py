"""When a training writes checkpoints: the best epoch, the last one, every so many minutes, and where it is stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from gptask.training import private
from gptask.training.checkpoint_files import (
    BEST,
    LAST,
    TIMED,
    best_name,
    damage,
    remove_outdated_best,
    write_checkpoint,
)
from gptask.training.interrupts import forget_signals, release_signals, signals_are_held
from gptask.training.process_watch import lost_process
from gptask.training.resume_point import used_at_epoch_end


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes files that are whole whenever the process ends, and removes a best one once no newer file names it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; Lightning's own way leads through TMPDIR, which may be another file system."""
        path = Path(path)
        write_checkpoint(checkpoint, path)
        if path.name == LAST:
            remove_outdated_best(path.parent, best_name(checkpoint))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint; a best one goes later."""
        path = Path(path)
        if not path.match(BEST):
            path.unlink(missing_ok=True)


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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best file so far; one that is lost counts as never written."""
        best = state_dict["best_model_path"]
        if best and damage(Path(str(self.dirpath), best)):
            empty: dict[str, Any] = {
                "best_model_path": "",
                "best_model_score": None,
                "kth_best_model_path": "",
                "best_k_models": {},
            }
            state_dict = state_dict | empty | {"current_score": None, "kth_value": self.kth_value}
        super().load_state_dict(state_dict)

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


def finite_or_worst(value: torch.Tensor, mode: str) -> torch.Tensor:
    """A logged value, or infinity in the worse direction where it is not finite."""
    worst = torch.full_like(value, math.inf if mode == "min" else -math.inf)
    return torch.where(value.isfinite(), value, worst)


class TimedCheckpoint(pl.Callback):
    """Writes a checkpoint behind the optimizer step that is made once ``minutes`` have passed since the last one.

    A validation writes others; from this one a killed training goes on within an epoch.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        self._written, self._written_step = 0.0, 0  # time.monotonic() and optimizer steps made at the last checkpoint
        self._last_step = self._next_question = 0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Start the clock."""
        self._written, self._written_step = time.monotonic(), trainer.global_step
        self._last_step = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Start the clock anew."""
        self._written, self._written_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Write a checkpoint if it is time, in all processes or in none."""
        step = trainer.global_step
        if step == self._last_step or step < self._next_question:  # no step is made, or it can't be time yet
            return
        now = time.monotonic()
        due, wait = trainer.strategy.broadcast((self._is_due(now), self._steps_to_wait(now, step, trainer.world_size)))
        self._last_step, self._next_question = step, step + wait
        if due:
            path = self.folder / f"timed-step={step}.ckpt"
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                self._remove_others(path, step)

    def _is_due(self, now: float) -> bool:
        return now - self._written >= 60 * self.minutes

    def _steps_to_wait(self, now: float, step: int, processes: int) -> int:
        """After how many steps to ask again: agreeing costs several processes time, so they do it a few times only."""
        if processes == 1 or self._is_due(now):
            return 1
        steps, seconds = step - self._written_step, now - self._written  # since the last checkpoint
        steps_left = steps * (60 * self.minutes / max(seconds, 1e-6) - 1)
        return max(1, int(min(steps, steps_left / 2)))  # a few fast steps say little of those that come

    def _remove_others(self, newest: Path, step: int) -> None:
        """Keep the one before, should the newest be damaged; one of a later step is of a training that was given up."""
        steps = {path: int(path.stem.partition("=")[2]) for path in self.folder.glob(TIMED)}
        before = max((path for path in steps if steps[path] < step), key=steps.__getitem__, default=newest)
        for path in steps.keys() - {newest, before}:
            path.unlink(missing_ok=True)


class SaveOnInterrupt(pl.Callback):
    """Writes a checkpoint on Ctrl-C, SIGTERM and the death of another process, so that nothing computed is lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first_step: int | None = None  # optimizer steps made before; None outside of the training loop

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """From here on all that a checkpoint holds is restored."""
        self._first_step = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """The last checkpoint is written."""
        self._first_step = None

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """Save if the training has made a step; validation between the steps counts as training."""
        half_made = signals_are_held()
        forget_signals()
        if self._first_step in (None, trainer.global_step):
            return
        if isinstance(exception, KeyboardInterrupt) or (
            isinstance(exception, RuntimeError) and not half_made and lost_process()
        ):
            private.save_alone(trainer, self.path)


class LastCheckpoint(PortableCheckpoint):
    """Writes the state behind each validation and at the end, from which a training goes on.

    It is the last of gptask's callbacks: behind it a signal that `ResumePoint` holds back may stop the training.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """The optimizer step is complete."""
        super().on_train_batch_end(trainer, *arguments)
        release_signals()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The validation is used, unless that is done at the end of the epoch."""
        super().on_validation_end(trainer, pl_module)
        if not used_at_epoch_end(trainer):
            release_signals()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch is complete."""
        super().on_train_epoch_end(trainer, pl_module)
        release_signals()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write steps that no validation came behind, so that a run that is stopped in its test only tests again."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step and private.step_of_last_save(self) != trainer.global_step:
            trainer.save_checkpoint(Path(str(self.dirpath), LAST))
        release_signals()
