"""Progress (a rich bar in a terminal, plain lines elsewhere) and speed."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from math import isfinite
from multiprocessing import current_process
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

log = logging.getLogger("gptask")


class Speed(pl.Callback):
    """Tokens per second of training, without validation; shown as ``tok/s``."""

    def __init__(self) -> None:
        self.seconds, self.tokens, self._batch_start, self._tokens_before = 0.0, 0, 0.0, 0

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        """Start the clock."""
        self._batch_start, self._tokens_before = time.perf_counter(), module.tokens

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self._batch_start
        self.tokens += module.tokens - self._tokens_before
        module.log("train/tokens_per_second", self.rate, prog_bar=True)

    @property
    def rate(self) -> float:
        """Tokens per second so far."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @classmethod
    def of(cls, trainer: pl.Trainer) -> float | None:
        """The rate of a trainer's training, None if it did not train."""
        speeds = [callback for callback in trainer.callbacks if isinstance(callback, cls)]  # type: ignore[attr-defined]
        return round(speeds[0].rate, 1) if speeds and speeds[0].tokens else None


class RichProgress(RichProgressBar, Speed):
    """A rich bar with loss, tokens/s and time left."""

    def __init__(self) -> None:
        RichProgressBar.__init__(self)
        Speed.__init__(self)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Short names, without Lightning's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        short_names = {name: name.replace("train/tokens_per_second", "tok/s").replace("train/", "") for name in metrics}
        return {short_names[name]: value for name, value in metrics.items()}

    def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Start the clock."""
        RichProgressBar.on_train_batch_start(self, trainer, module, *rest)
        Speed.on_train_batch_start(self, trainer, module, *rest)

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Stop the clock and draw."""
        Speed.on_train_batch_end(self, trainer, module, *rest)
        RichProgressBar.on_train_batch_end(self, trainer, module, *rest)


class LineProgress(pl.callbacks.ProgressBar, Speed):
    """Logs a line at the first step, once in ``every`` seconds, and after each validation."""

    def __init__(self, every: float = 10.0) -> None:
        pl.callbacks.ProgressBar.__init__(self)
        Speed.__init__(self)
        self.every, self._last_line, self._started, self._first_step = every, 0.0, 0.0, 0

    def disable(self) -> None:
        """Log no lines; Lightning calls this on all ranks but the first."""
        self.every = float("inf")

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Start the clock."""
        self._started, self._last_line = time.perf_counter(), float("-inf")
        self._first_step = trainer.global_step  # above zero after a resume

    def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Start the clock."""
        Speed.on_train_batch_start(self, trainer, module, *rest)

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Log a line if the last one is long enough ago."""
        Speed.on_train_batch_end(self, trainer, module, *rest)
        now = time.perf_counter()
        if now - self._last_line < self.every:
            return
        self._last_line = now
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        seconds_per_step = (now - self._started) / max(step - self._first_step, 1)
        time_left = timedelta(seconds=round(seconds_per_step * max(total - step, 0))) if isfinite(total) else "?"
        loss = trainer.callback_metrics.get("train/loss", float("nan"))
        log.info(
            "epoch %d step %d/%s loss %.4f %.0f tokens/s, %s left",
            trainer.current_epoch + 1, step, total, float(loss), self.rate, time_left,
        )  # fmt: skip

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Log the validation metrics."""
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        if metrics and not trainer.sanity_checking and self.every != float("inf"):
            text = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            log.info("epoch %d step %d %s", trainer.current_epoch + 1, trainer.global_step, text)


def progress_bar() -> pl.Callback:
    """A bar in a terminal, lines elsewhere; lines too for jobs side by side, whose bars would overwrite one another."""
    only_job = current_process().name == "MainProcess"
    return RichProgress() if only_job and sys.stderr.isatty() and sys.stdout.isatty() else LineProgress()
