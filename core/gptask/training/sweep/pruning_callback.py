"""The Lightning callback that reports validation to Optuna, which may prune the trial."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger("gptask")


class OptunaPruning(pl.Callback):
    """Reports the main metric after each validation; raises ``optuna.TrialPruned`` when the pruner decides so.

    Reports are numbered by validation, not by step, because the number of steps differs with the batch size. A
    training in several processes is not pruned: its other processes would wait for the first one forever.
    """

    def __init__(self, trial: Any, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.values: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Warn where pruning is not possible."""
        if trainer.world_size > 1:
            log.warning("several processes train, so this trial is not pruned")

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Report the metric and prune."""
        import optuna

        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.values.append(float(trainer.callback_metrics[f"val/{self.metric}"]))
        self.trial.report(self.values[-1], len(self.values))
        if trainer.world_size == 1 and self.trial.should_prune():
            raise optuna.TrialPruned(f"{self.metric} {self.values[-1]:.4f} after validation {len(self.values)}")
