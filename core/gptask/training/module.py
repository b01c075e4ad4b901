"""The one LightningModule: backbone, heads, optimizer; the same for every task, and for several at once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from gptask.data.datamodule import PaddedBatch
from gptask.data.mixture import TaskBatch
from gptask.model.backbone.backbone import GPTBackbone
from gptask.training import optim
from gptask.training.task_runtime import TaskRuntime, normalized_score

SCORE = "val/score"  # mean over several tasks


class GPTModule(pl.LightningModule):
    """Trains the head of each task on one backbone, and scores splits with the tasks' own metrics.

    Checkpoints hold what learns and nothing else, so they stay small and load with ``weights_only=True``.
    """

    strict_loading = False  # frozen weights are not in a checkpoint

    def __init__(
        self, backbone: GPTBackbone, seats: Sequence[TaskRuntime], optimizer: Any = None, schedule: Any = None
    ) -> None:
        super().__init__()
        self.backbone, self.seats = backbone, list(seats)
        for seat in seats:
            self.add_module(f"{seat.prefix}head".replace("/", "_"), seat.head)
        self.optimizer, self.schedule = optimizer, schedule
        self.tokens = 0  # real tokens (no pads) seen in training

    def training_step(self, batch: PaddedBatch | TaskBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, which is of one task, times that task's weight."""
        number, batch = batch if isinstance(batch, TaskBatch) else (0, batch)
        seat = self.seats[number]
        loss = seat.head.loss(self._hidden(seat, batch, "train"), batch)
        self.tokens += int(batch.lengths.sum())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.lengths))
        if seat.prefix:
            self.log(f"train/{seat.prefix}loss", loss.detach(), batch_size=len(batch.lengths))
        return loss * seat.weight

    def _hidden(self, seat: TaskRuntime, batch: PaddedBatch, split: str) -> Tensor:
        """Last hidden states (B, T, C), right where the head reads them; from disk where they are kept."""
        if kept := seat.states.get(split):
            return kept.hidden(batch)
        return self.backbone.hidden(batch.input_ids, batch.lengths, seat.head.needed_positions(batch))

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier pass said."""
        for seat in self.seats:
            seat.outputs = {}

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: PaddedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and predictions of one batch."""
        seat = self.seats[dataloader_idx]
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        with self._as_saved():
            hidden = self._hidden(seat, batch, "validation")
            self.log(f"val/{seat.prefix}loss", seat.head.loss(hidden, batch), batch_size=len(batch.lengths), **how)
            self._predict_batch(seat, batch, hidden)

    def test_step(self, batch: PaddedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Predictions of one batch."""
        with self._as_saved():
            self._predict_batch(self.seats[dataloader_idx], batch, None)

    def _as_saved(self) -> torch.autocast:
        """Weights as they are saved and loaded for scoring, whatever number format training computes in."""
        return torch.autocast(self.device.type, enabled=False)

    def _predict_batch(self, seat: TaskRuntime, batch: PaddedBatch, hidden: Tensor | None) -> None:
        said = seat.head.predict(self.backbone, batch, hidden)
        seat.outputs.update(zip(batch.rows, said, strict=True))

    def on_validation_epoch_end(self) -> None:
        """The tasks' metrics, logged as ``val/<name>``; of several tasks, also the mean of their main ones."""
        if self.trainer.sanity_checking:
            return
        mains = []
        for seat in self.seats:
            for number, (metric, value) in enumerate(seat.validated()):
                self.log(f"val/{seat.prefix}{metric.name}", value, prog_bar=number == 0)
                mains += [normalized_score(metric, value)] if number == 0 else []
        if len(self.seats) > 1:
            self.log(SCORE, fmean(mains), prog_bar=True)

    @property
    def tuned_options(self) -> dict[str, Any]:
        """Options that validation chose, under the names of their tasks if there are several."""
        return {f"{seat.prefix}{name}": value for seat in self.seats for name, value in seat.tuned_options.items()}

    def set_tuned_options(self, adjusted: dict[str, Any]) -> None:
        """Set them again."""
        for seat in self.seats:
            own = {n.removeprefix(seat.prefix): v for n, v in adjusted.items() if n.startswith(seat.prefix)}
            seat.set_tuned_options(own)

    def configure_optimizers(self) -> Any:
        """The configured optimizer with its schedule, stepped at every optimizer step."""
        optimizer, total = optim.build_optimizer(self.optimizer, self), self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, optim.schedule_factor(self.schedule, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop frozen weights (a backbone from scratch can't be had again, so it is kept)."""
        checkpoint["adjusted"] = self.tuned_options
        if self.backbone.origin.kind != "scratch":
            learning = {name for name, p in self.named_parameters() if p.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in learning}
