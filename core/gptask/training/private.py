"""What Lightning and torch's schedulers know of a training's position but let nobody set in public.

No other module of this room touches their private names. Where the position depends on it, an attribute has to be
there: a version of Lightning that renames one raises `AttributeError`, and never resumes at a wrong position.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


def drop_train_loader(trainer: Any) -> None:
    """Let the trainer ask for its training loader anew."""
    _set(trainer.fit_loop, "_combined_loader", None)


def force_validation(trainer: Any) -> None:
    """Make the next check find that a validation is due, also where validations are due by time."""
    trainer._last_val_time = -math.inf  # there only once validations are due by time


def validates_now(trainer: Any) -> bool:
    """Whether a validation is due behind the batch that the loop has reached."""
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def set_stepped_batches(trainer: Any, count: int) -> None:
    """Set the number of batches behind which an optimizer stepped, by which loggers count."""
    _set(trainer.fit_loop.epoch_loop, "_batches_that_stepped", count)


def save_alone(trainer: Any, path: Path) -> None:
    """Write a checkpoint in rank 0 without the other processes; where the strategy shards the state, write none."""
    from pytorch_lightning.strategies import DDPStrategy  # for start-up time

    if trainer.world_size == 1 or type(trainer.strategy) is DDPStrategy:
        trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(False), path)


def starts_commands(trainer: Any) -> bool:
    """Whether the processes of a trainer are started by commands, by it or by another launcher."""
    from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher  # for start-up time

    return isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)


def keep_signal_handlers(trainer: Any) -> None:
    """Keep Lightning's handler of SIGTERM away: it waits for the other processes, which may wait for this one."""
    connector = trainer._signal_connector
    register = connector.register_signal_handlers

    def register_all_but_sigterm() -> None:
        handler = signal.getsignal(signal.SIGTERM)
        register()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    connector.register_signal_handlers = register_all_but_sigterm


def step_of_last_save(callback: Any) -> int:
    """The optimizer steps made when a checkpoint callback last wrote a file, 0 if it never did."""
    return int(callback._last_global_step_saved)


def set_learning_rates(scheduler: Any, step: int, rates: Sequence[float]) -> None:
    """Put a schedule and its optimizer at a step, with the learning rates of the parameter groups there."""
    scheduler.last_epoch = step
    _set(scheduler, "_last_lr", [*rates])
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def end_process(code: int) -> NoReturn:
    """End the process at once, without waiting for its threads; the call is public for all its underscore."""
    os._exit(code)


def _set(owner: Any, name: str, value: Any) -> None:
    getattr(owner, name)  # raises AttributeError where it is gone
    setattr(owner, name, value)
