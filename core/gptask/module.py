"""The one LightningModule: backbone, head, optimizer; the same for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from gptask import optim
from gptask.backbone.model import Backbone
from gptask.data.module import Batch
from gptask.heads import Head
from gptask.states import States
from gptask.task import Example, Prediction, Task


class GPTModule(pl.LightningModule):
    """Trains a head on a backbone, and scores splits with the task's own metrics.

    Checkpoints hold what learns and nothing else, so they stay small and load with ``weights_only=True``.
    """

    strict_loading = False  # frozen weights are not in a checkpoint

    def __init__(self, task: Task, backbone: Backbone, head: Head, optimizer: Any = None, schedule: Any = None) -> None:
        super().__init__()
        self.task, self.backbone, self.head = task, backbone, head
        self.optimizer, self.schedule = optimizer, schedule
        self.outputs: dict[int, Any] = {}  # encoded item -> what the head said
        self.tokens = 0  # real tokens (no pads) seen in training
        self.adjusted: dict[str, Any] = {}  # options of the task that validation chose
        self.states: dict[str, States | None] = {}  # split -> kept hidden states of a frozen backbone

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.head.loss(self._hidden(batch, "train"), batch)
        self.tokens += int(batch.lengths.sum())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.lengths))
        return loss

    def _hidden(self, batch: Batch, split: str) -> Tensor:
        """Last hidden states (B, T, C), read from disk where they are kept."""
        kept = self.states.get(split)
        return kept.hidden(batch) if kept else self.backbone.hidden(batch.input_ids, batch.lengths)

    def _score_batch(self, batch: Batch, loss_name: str | None) -> None:
        hidden = None
        if loss_name:
            hidden = self._hidden(batch, "validation")
            loss = self.head.loss(hidden, batch)
            self.log(loss_name, loss, batch_size=len(batch.lengths), on_epoch=True, on_step=False)
        said = self.head.predict(self.backbone, batch, hidden)
        self.outputs.update(zip(batch.rows, said, strict=True))

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier pass said."""
        self.outputs = {}

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and predictions of one batch."""
        self._score_batch(batch, "val/loss")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Predictions of one batch."""
        self._score_batch(batch, None)

    def on_validation_epoch_end(self) -> None:
        """The task's metrics, logged as ``val/<name>``."""
        if self.trainer.sanity_checking:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        examples, predictions = self.predictions(data, "validation")
        if examples and (adjusted := self.task.adjust(predictions, examples)):
            self.adjust(adjusted)
            examples, predictions = self.predictions(data, "validation")
        for number, metric in enumerate(m for m in self.task.metrics() if not m.final):
            rows = [metric.statistics(p, e) for p, e in zip(predictions, examples, strict=True)]
            value = metric.aggregate(np.asarray(rows, dtype=float)) if rows else float("nan")
            self.log(f"val/{metric.name}", value, prog_bar=number == 0)

    def adjust(self, options: dict[str, Any]) -> None:
        """Set options of the task that validation chose."""
        self.adjusted = options
        for name, value in options.items():
            setattr(self.task, name, value)

    def predictions(self, data: Any, split: str) -> tuple[list[Example], list[Prediction]]:
        """The examples of a split that were seen (all, unless the trainer was limited) and their predictions."""
        return merge(self.task, data.examples(split), data.items(split).column("example"), self.outputs)

    def configure_optimizers(self) -> Any:
        """The configured optimizer with its schedule, stepped at every optimizer step."""
        optimizer, total = optim.build(self.optimizer, self), self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, optim.shape(self.schedule, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop frozen weights (a backbone from scratch can't be had again, so it is kept)."""
        checkpoint["adjusted"] = self.adjusted
        if self.backbone.origin.kind != "scratch":
            learning = {name for name, p in self.named_parameters() if p.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in learning}


def merge(
    task: Task, examples: Sequence[Example], owners: np.ndarray, outputs: dict[int, Any]
) -> tuple[list[Example], list[Prediction]]:
    """Bring the outputs of encoded items together by example and let the task turn them into predictions."""
    grouped: dict[int, list[Any]] = {}
    for row in sorted(outputs):
        grouped.setdefault(int(owners[row]), []).append(outputs[row])
    seen = [examples[number] for number in grouped]
    return seen, [task.prediction(e, o) for e, o in zip(seen, grouped.values(), strict=True)]
