"""Where a training goes on from a checkpoint: the same batch, the same random numbers, the same learning rate.

Lightning restores its counters as they were at the moment of the interruption, in the middle of a batch, of an
accumulation or of a validation, and begins an epoch's batches anew. This callback restores the state after the last
optimizer step, which is what the weights of the checkpoint are of. It is the one module that touches the private names
of Lightning's loops; their state in a checkpoint is part of its format.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from gptask.data.batches import first_batch_of
from gptask.runs.folder import KEY_IN_CHECKPOINT
from gptask.training import private
from gptask.training.interrupts import hold_signals

log = logging.getLogger("gptask")


class ResumePoint(pl.Callback):
    """Adds to each checkpoint what a training needs to go on as if it had not stopped, and restores it.

    ``record`` is what the run started with (`resume.start_record`); each checkpoint holds it under ``gptask``, beside
    the random state.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self._accumulating = False
        self._validated_step = -1  # the optimizer step behind which the last validation was finished
        self._states: tuple[int, dict[str, Any]] | None = None  # before the work in progress, and its step
        self._loader_state: Any = None  # of a plugin's loader that has one, before the optimizer step in progress
        self._resumed: dict[str, Any] | None = None  # what a checkpoint holds under `KEY_IN_CHECKPOINT`
        self._step = self._first_batch = 0  # optimizer steps made before, and batches of the epoch
        self._at_end = False  # whether the last step was made before
        self._total_steps: float = 0  # at which the learning-rate schedule ends
        self._validation_forced: tuple[Any, int] | None = None  # the trainer's val_check_batch and max_steps before

    # --- while the training goes on -----------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Note the random state at the start of an optimizer step: where it is interrupted, it is made anew."""
        if not self._accumulating:
            self._draw_anew(trainer)
            self._states, self._accumulating = self._current(trainer), True

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        """Hold signals back until the weights and all counters are those of the next step."""
        hold_signals()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Forget the random state once the step is made; let the last step of a training be validated."""
        if self._states and trainer.global_step > self._states[0]:
            self._states, self._accumulating = None, False
            self._note_loader(trainer)
        last_epoch = trainer.max_epochs == trainer.current_epoch + 1 and not used_at_epoch_end(trainer)
        if 0 < trainer.max_steps <= trainer.global_step or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True  # Lightning then validates first
        if trainer.should_stop and time_is_over(trainer) and trainer.check_val_every_n_epoch:
            trainer.check_val_every_n_epoch = 1  # also in an epoch that would not be validated

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Note the random state: an interrupted validation is made anew."""
        if trainer.state.fn == "fit":
            self._draw_anew(trainer)
            self._states = self._states or self._current(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Forget the random state; callbacks that write checkpoints come later."""
        if trainer.state.fn == "fit":
            hold_signals()  # until each callback has used what validation found
            self._validated_step = trainer.global_step
            self._draw_anew(trainer)
            if not self._accumulating:
                self._states = None
            if self._validation_forced:
                trainer.val_check_batch, trainer.fit_loop.epoch_loop.max_steps = self._validation_forced
                self._validation_forced = None
                trainer.should_stop = trainer.should_stop or time_is_over(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Note the state of a loader no batch of which is drawn yet."""
        self._note_loader(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """See `_draw_anew`."""
        self._draw_anew(trainer)

    def _draw_anew(self, trainer: pl.Trainer) -> None:
        """Seed the random generators of one of several processes by its rank and the optimizer steps made.

        So each process draws numbers of its own, and a checkpoint, which rank 0 writes without asking the others for
        their states, tells what they were.
        """
        if trainer.world_size > 1:
            seed_random_states(self.record["config"]["seed"], trainer.global_step, trainer.global_rank)

    def _note_loader(self, trainer: pl.Trainer) -> None:
        loader: Any = trainer.train_dataloader
        self._loader_state = loader.state_dict() if _is_stateful(loader) else None

    def _current(self, trainer: pl.Trainer) -> tuple[int, dict[str, Any]]:
        """The optimizer steps made, and the random states."""
        return trainer.global_step, random_states(trainer.strategy.root_device)

    # --- in a checkpoint ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the record, the random states, and whether the last step is validated, if it has to be."""
        states = self._states
        if states is None or trainer.global_step > states[0]:
            states = self._current(trainer)
        elif self._loader_state is not None:
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [self._loader_state]
        checkpoint[KEY_IN_CHECKPOINT] = {
            "record": self.record | {"world_size": trainer.world_size, "total_steps": self._total_steps},
            "random_states": [_as_tensors(states[1])],  # of several processes, rank 0's
            "validated": self._validated_step == trainer.global_step,
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Set the loops' counters to the last optimizer step, and let the data module leave out the batches before."""
        self._resumed, self._step = checkpoint[KEY_IN_CHECKPOINT], checkpoint["global_step"]
        loops, ratio = checkpoint["loops"]["fit_loop"], self._resumed["record"]["world_size"] / trainer.world_size
        epochs = loops["epoch_progress"]["current"]
        # What validation found is used at the end of the epoch, unless one validates within epochs; it is not saved.
        unused = used_at_epoch_end(trainer) and epochs["started"] != epochs["processed"]
        validated = self._resumed["validated"] and not unused
        epoch, self._first_batch = rewind(loops, trainer.accumulate_grad_batches, ratio, validated)
        self._validated_step = self._step if validated else -1
        self._at_end = 0 < trainer.max_steps <= self._step or (
            trainer.max_epochs == epoch + 1 and loops["epoch_loop.batch_progress"]["is_last_batch"]
        )
        trainer.datamodule.resumed_at = (epoch, self._first_batch)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Restore the random states before a loader is made, as a plugin's may draw from them."""
        self._total_steps = trainer.estimated_stepping_batches
        self._draw_anew(trainer)
        if not self._resumed:
            return
        private.drop_train_loader(trainer)  # made for the learning-rate schedule, before the loops were restored
        if trainer.world_size == 1:
            restore_random_states(self._resumed["random_states"][0], trainer.strategy.root_device)
        loop = trainer.fit_loop.epoch_loop
        unvalidated = self._first_batch and self._validated_step < self._step and trainer.enable_validation
        if unvalidated and time_is_over(trainer):
            trainer.should_stop = False  # it stops behind its validation
            self._at_end, trainer.check_val_every_n_epoch = True, trainer.check_val_every_n_epoch and 1
        if self._at_end and unvalidated and trainer.check_val_every_n_epoch in (None, 1):
            self._validation_forced = (None, loop.max_steps)
            loop.max_steps = self._step + 1  # else nothing would run; the training ends behind its validation

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Begin where the checkpoint was written: loader, validation, learning rate."""
        if not self._resumed:
            return
        loop = trainer.fit_loop.epoch_loop
        self._check_loader(trainer)
        if not self._first_batch:
            loop.restarting = False
        self._note_loader(trainer)
        if self._validation_forced:
            self._validation_forced = (trainer.val_check_batch, self._validation_forced[1])
            trainer.val_check_batch = 1
            private.force_validation(trainer)
        at_validation = self._first_batch > 0 and private.validates_now(trainer)
        # Lightning counts the step behind the validation
        private.set_stepped_batches(trainer, self._step - at_validation)
        self._continue_schedule(trainer)
        self._resumed = None

    def _check_loader(self, trainer: pl.Trainer) -> None:
        """Begin the epoch anew where its loader can't leave out the batches that are done."""
        loader, progress = trainer.train_dataloader, trainer.fit_loop.epoch_loop.batch_progress
        if _is_stateful(loader) or progress.is_last_batch or first_batch_of(loader) == self._first_batch:
            return
        log.warning(
            "the training's own data loader (%s) has no state_dict(), so epoch %d begins anew, and %d of its batches "
            "are trained on twice", type(loader).__name__, trainer.current_epoch + 1, self._first_batch,
        )  # fmt: skip
        self._first_batch = 0
        progress.current.reset()

    def _continue_schedule(self, trainer: Any) -> None:
        """Set the learning rate to the schedule's at this step: its end may be another one now."""
        assert self._resumed
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            factors = [factor(self._step) for factor in scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
            private.set_learning_rates(scheduler, self._step, rates)
            if (before := self._resumed["record"]["total_steps"]) != self._total_steps:
                log.info(
                    "the training ends at step %s, no longer at %s: the learning rate goes on with %.3g at step %d, on "
                    "the schedule that leads to the new end", self._total_steps, before, rates[0], self._step,
                )  # fmt: skip


def rewind(loops: dict[str, Any], accumulate: int, ratio: float, validated: bool) -> tuple[int, int]:
    """Set the counters of a checkpoint's fit loop to the end of its last optimizer step; return epoch and batches done.

    ``accumulate`` is how many batches an optimizer step takes now; ``ratio`` is the number of devices before, divided
    by that of today; ``validated`` says that the validation behind the last step, if one is due, is finished.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"]["completed"]
    current, total = batches["current"], batches["total"]
    started, processed = epochs["current"]["started"], epochs["current"]["processed"]
    all_trained = batches["is_last_batch"] and steps * accumulate / ratio >= current["ready"]
    if started == processed and (all_trained or not started):
        epoch, done, before = processed, 0, total["processed"]
    else:  # also where the training ended within an epoch, which Lightning counts as one
        epoch, before = started - 1, total["processed"] - current["processed"]
        done = min(steps * accumulate, current["ready"]) if ratio == 1 else steps * accumulate
    for progress in epochs["current"], epochs["total"]:
        begun = epoch + (done > 0)
        progress.update(ready=begun, started=begun, processed=epoch, completed=epoch)
    current.update(dict.fromkeys(current, done))
    total.update(dict.fromkeys(total, int(before * ratio) + done))
    batches["is_last_batch"] = all_trained and done > 0
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for progress in validation["current"], validation["total"]:
        progress.update(dict.fromkeys(progress, 0))
    if not validated:  # as in the middle of a validation's first batch; Lightning then validates if it is due
        validation["total"].update(ready=1, started=1)
    if not done:
        loops["state_dict"].pop("combined_loader", None)
    return epoch, done


def used_at_epoch_end(trainer: pl.Trainer) -> bool:
    """Whether checkpoints and early stopping use a validation at the end of the epoch, as Lightning decides it."""
    return trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1


def time_is_over(trainer: pl.Trainer) -> bool:
    """Whether the time that ``trainer.max_time`` allows is over; of several processes the first one's clock decides."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    remaining = [seconds for timer in timers if (seconds := timer.time_remaining()) is not None]
    return bool(remaining and trainer.strategy.broadcast(min(remaining) <= 0))


def _is_stateful(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


# --- random states ----------------------------------------------------------------------------------------------------


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's random generators, and of the CUDA device's if it is one."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def seed_random_states(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's random generators by numbers that are not negative."""
    seeds = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.manual_seed(seeds[2])


def _as_tensors(states: dict[str, Any]) -> dict[str, Any]:
    """Random states as tensors and plain numbers, which ``torch.load(weights_only=True)`` reads."""
    version, numbers, gauss = states["python"]
    name, words, position, has_gauss, cached_gauss = states["numpy"]
    return states | {
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [name, torch.from_numpy(words.astype(np.int64)), int(position), int(has_gauss), float(cached_gauss)],
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore random states from a checkpoint; those of a kind of device that is not used any more are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, words, *others = states["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *others))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
