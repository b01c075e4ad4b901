"""The one LightningModule: backbone, heads, optimizer; the same for every task, and for several at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from gptask.config.schemas import SGD, AdamW, Schedule
from gptask.data.datamodule import PaddedBatch
from gptask.data.mixture import TaskBatch
from gptask.model.backbone.backbone import GPTBackbone
from gptask.plugins.metric import Metric
from gptask.training import optim
from gptask.training.divergence import DivergenceCheck, clip_gradients
from gptask.training.task_runtime import TaskRuntime, normalized_score

log = logging.getLogger("gptask")
T = TypeVar("T")
SCORE = "val/score"  # mean of several tasks' main metrics, normalized


class GPTModule(pl.LightningModule):
    """Trains the head of each task on one backbone, and scores splits with the tasks' own metrics.

    Checkpoints hold what learns and nothing else, so they stay small and load with ``weights_only=True``.
    """

    strict_loading = False  # frozen weights are not in a checkpoint

    def __init__(
        self,
        backbone: GPTBackbone,
        runtimes: Sequence[TaskRuntime],
        optimizer: AdamW | SGD | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.runtimes = backbone, list(runtimes)
        for runtime in runtimes:
            self.add_module(f"{runtime.prefix}head".replace("/", "_"), runtime.head)
        self.optimizer, self.schedule = optimizer or AdamW(), schedule or Schedule()
        self.tokens = 0  # real tokens (no pads) seen in training
        self.divergence = DivergenceCheck()

    def training_step(self, batch: PaddedBatch | TaskBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, which is of one task, times that task's weight."""
        task_index, batch = batch if isinstance(batch, TaskBatch) else (0, batch)
        runtime = self.runtimes[task_index]
        loss = runtime.training_loss(self._hidden(runtime, batch, "train"), batch)
        self.tokens += int(batch.lengths.sum())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.lengths))
        if runtime.prefix:
            self.log(f"train/{runtime.prefix}loss", loss.detach(), batch_size=len(batch.lengths))
        return loss * (0.0 if self._is_filler(batch_idx) else runtime.weight)

    def _is_filler(self, batch_idx: int) -> bool:
        """Whether a batch is trained on elsewhere: with a loss of 0 an optimizer step of several is as of one."""
        loader = self.trainer.train_dataloader if self.trainer.world_size > 1 else None
        is_filler = getattr(getattr(loader, "batch_sampler", None), "is_filler", None)
        return bool(is_filler and is_filler(batch_idx))

    def _hidden(self, runtime: TaskRuntime, batch: PaddedBatch, split: str) -> Tensor:
        """Last hidden states (B, T, C), right where the head reads them; from disk where they are cached."""
        if cache := runtime.activation_caches.get(split):
            return cache.hidden(batch)
        return self.backbone.hidden(batch.input_ids, batch.lengths, runtime.head.needed_positions(batch))

    def on_before_backward(self, loss: Tensor) -> None:
        """Stop where the loss is not finite."""
        if self.trainer.world_size == 1:  # else one process would stop alone; they share the gradients' norm
            self.divergence.add("loss", loss, self.trainer.global_step + 1)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, and stop where their norm is not finite."""
        norm = clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)
        if norm is not None:
            self.divergence.add("norm of the gradients", norm, self.trainer.global_step + 1)

    def on_validation_epoch_start(self) -> None:
        """Drop the outputs of an earlier pass."""
        self.divergence.read()
        for runtime in self.runtimes:
            runtime.outputs, runtime.losses = {}, []

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: PaddedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and predictions of one batch."""
        runtime = self.runtimes[dataloader_idx]
        if not batch.rows:  # of a process that has nothing to score
            return

        def score(part: PaddedBatch) -> Tensor:
            hidden = self._hidden(runtime, part, "validation")
            loss = runtime.head.loss(hidden, part)
            self._predict_batch(runtime, part, None if runtime.head.decodes else hidden)
            return loss.detach()

        runtime.losses += self._in_parts(runtime, "validation", batch, score)

    def test_step(self, batch: PaddedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Predictions of one batch."""
        runtime = self.runtimes[dataloader_idx]
        if not batch.rows:
            return

        def predict(part: PaddedBatch) -> None:
            self._predict_batch(runtime, part, None if runtime.head.decodes else self._hidden(runtime, part, "test"))

        self._in_parts(runtime, "test", batch, predict)

    def _in_parts(
        self, runtime: TaskRuntime, split: str, batch: PaddedBatch, compute: Callable[[PaddedBatch], T]
    ) -> list[tuple[int, T]]:
        """What is computed of a batch or, where memory runs out, of its parts, each with its number of rows."""

        def compute_part(rows: slice) -> tuple[int, T]:
            part = batch.part(rows)
            return len(part.lengths), compute(part)

        with self._without_autocast():
            return runtime.dividers[split].compute(batch.lengths.tolist(), compute_part)

    def _without_autocast(self) -> torch.autocast:
        """Score in the weights' own number format, as a loaded run does, whatever format training computes in."""
        return torch.autocast(self.device.type, enabled=False)

    def _predict_batch(self, runtime: TaskRuntime, batch: PaddedBatch, hidden: Tensor | None) -> None:
        outputs = runtime.head.predict(hidden, batch)
        runtime.outputs.update(zip(batch.rows, outputs, strict=True))

    def on_validation_epoch_end(self) -> None:
        """Log the tasks' losses and metrics as ``val/<name>``; for several tasks, also the mean of their main ones.

        A value that is not finite is logged as nan, which counts as the worst.
        """
        if self.trainer.sanity_checking:
            return
        self._gather_outputs()
        main_scores = []
        for runtime in self.runtimes:
            loss, scores = self._validation_results(runtime)
            if loss is not None:
                self.log(f"val/{runtime.prefix}loss", loss)
            for number, (metric, value) in enumerate(scores):
                name = f"val/{runtime.prefix}{metric.name}"
                if not math.isfinite(value):
                    log.warning("%s is %s at step %d: it counts as the worst value", name, value, self.global_step)
                    value = math.nan
                self.log(name, value, prog_bar=number == 0)
                if number == 0:
                    main_scores.append(normalized_score(metric, value))
        if len(self.runtimes) > 1:
            self.log(SCORE, fmean(main_scores), prog_bar=True)

    def _validation_results(self, runtime: TaskRuntime) -> tuple[float | None, list[tuple[Metric, float]]]:
        """The mean loss, None where no batch was scored, and the metrics, which rank 0 computes for all processes."""
        scores = list(runtime.validation_scores()) if self.trainer.is_global_zero else []
        values = [value for _, value in scores]
        results = runtime.mean_loss(), values, runtime.tuned_options
        loss, values, tuned_options = self.trainer.strategy.broadcast(results)
        if scores:
            return loss, scores
        runtime.set_tuned_options(tuned_options)
        return loss, [*zip((metric for metric in runtime.task.metrics() if not metric.final), values, strict=True)]

    def _gather_outputs(self) -> None:
        """Let rank 0 have the losses and outputs of all processes, each of which has scored batches of its own.

        A plugin's own data module may have all of them score everything: then each example counts once.
        """
        trainer = self.trainer
        if trainer.world_size == 1:
            return
        for runtime in self.runtimes:
            own = (runtime.outputs, [(rows, float(loss)) for rows, loss in runtime.losses])
            parts: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(own, parts, dst=0)
            for outputs, losses in (parts or [])[1:]:
                if not outputs.keys() <= runtime.outputs.keys():
                    runtime.losses += losses
                runtime.outputs = outputs | runtime.outputs

    on_test_epoch_end = _gather_outputs

    @property
    def tuned_options(self) -> dict[str, Any]:
        """Options that validation chose, under the names of their tasks if there are several."""
        return {
            f"{runtime.prefix}{name}": value
            for runtime in self.runtimes
            for name, value in runtime.tuned_options.items()
        }

    def set_tuned_options(self, options: dict[str, Any]) -> None:
        """Set options under the names that `tuned_options` gives them."""
        for runtime in self.runtimes:
            runtime.set_tuned_options(
                {name.removeprefix(runtime.prefix): v for name, v in options.items() if name.startswith(runtime.prefix)}
            )

    def configure_optimizers(self) -> Any:
        """The configured optimizer with its schedule, stepped at every optimizer step."""
        optimizer, steps = optim.build_optimizer(self.optimizer, self), self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, optim.schedule_factor(self.schedule, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop frozen weights; those of a backbone from scratch, which can't be loaded again, stay."""
        self.divergence.read()
        checkpoint["tuned_options"] = self.tuned_options
        if self.backbone.origin.kind != "scratch":
            trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}
