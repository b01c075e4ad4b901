"""The Lightning callback that lets Optuna see a training, and end one that lags behind."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger("gptask")


class OptunaPruning(pl.Callback):
    """Reports the main metric after each validation; raises ``optuna.TrialPruned`` where the pruner says so.

    The validations are counted instead of the steps: these differ with the batch size. A training in several processes
    is not ended, as its other processes would wait for the first for ever.
    """

    def __init__(self, trial: Any, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.values: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Say what will not happen."""
        if trainer.world_size > 1:
            log.warning("several processes train, so this trial is not pruned")

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Report, and ask."""
        import optuna

        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.values.append(float(trainer.callback_metrics[f"val/{self.metric}"]))
        self.trial.report(self.values[-1], len(self.values))
        if trainer.world_size == 1 and self.trial.should_prune():
            raise optuna.TrialPruned(f"{self.metric} {self.values[-1]:.4f} after validation {len(self.values)}")
