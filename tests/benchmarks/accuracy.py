"""Seconds of training to the tuned reference's best dev accuracy on 2,000 SST-2 sentences (full tier only)."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import reference
from harness import DATA, FULL, Result
from ours import Training, labelled, options
from transformers import TrainerCallback

RATES = (2e-4, 5e-4, 1e-3)
EPOCHS = 3
CHECKS = 4  # measurements of gptask's accuracy in an epoch


class Curve:
    """Accuracy over seconds of training; evaluation is not counted."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.trained_seconds, self.start = 0.0, time.perf_counter()

    def add(self, measure: Any) -> None:
        """Stop the clock and measure."""
        self.trained_seconds += time.perf_counter() - self.start
        self.points.append((self.trained_seconds, measure()))
        self.start = time.perf_counter()

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds until this accuracy was first reached."""
        return next((seconds for seconds, value in self.points if value >= accuracy), None)


class ReferenceCurve(TrainerCallback):
    """Accuracy after each epoch of a Trainer."""

    def __init__(self, curve: Curve, measure: Any) -> None:
        self.curve, self.measure = curve, measure

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.curve.add(self.measure)


class GptaskCurve(pl.Callback):
    """Accuracy at each validation of gptask."""

    def __init__(self) -> None:
        self.curve = Curve()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.curve.start = time.perf_counter()

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.curve.trained_seconds += time.perf_counter() - self.curve.start

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.curve.points.append((self.curve.trained_seconds, float(trainer.callback_metrics["val/accuracy"])))
        self.curve.start = time.perf_counter()


def run(tier: str) -> list[Result]:
    """The tuned Trainer with its best learning rate, and gptask's defaults."""
    if tier != FULL or not DATA.is_dir():
        return []
    ours = Training(options("sst2", "data.limit.train=2000", "data.validation=sentiment/sst2/dev.tsv"))
    labels = ours.config.task.labels
    parts = [labelled(examples, labels) for examples in (ours.examples, ours.data.examples("validation"))]
    curves = {rate: reference_curve(ours.location, labels, *parts, rate) for rate in RATES}
    rate, curve = max(curves.items(), key=lambda item: max(accuracy for _, accuracy in item[1].points))
    best = max(accuracy for _, accuracy in curve.points)
    measured = GptaskCurve()
    ours.fit(Path(tempfile.mkdtemp()), EPOCHS, [measured], val_check_interval=1 / CHECKS)
    points = measured.curve.points
    seconds = measured.curve.seconds_to(best) or points[-1][0]
    top = max(accuracy for _, accuracy in points)
    extra = {"ours": points, "reference": {str(rate): curve.points for rate, curve in curves.items()}}
    note = f"reference's best {best:.1f} with learning rate {rate:g}; ours at best {top:.1f}"
    return [
        Result(
            "time to accuracy, SST-2", "s", [seconds], [curve.seconds_to(best) or 0.0], "tuned Trainer", 4.0,
            lower=True, quality=(top, best), note=note, extra=extra,
        )
    ]  # fmt: skip


def reference_curve(location: str, labels: list[str], train: Any, dev: Any, rate: float) -> Curve:
    """Train the tuned Trainer for all epochs."""
    model = reference.classifier(location, labels, lora=True)
    settings = reference.TUNED | {"learning_rate": rate, "num_train_epochs": EPOCHS}
    trainer = reference.classification(model, location, *train, **settings)
    curve = Curve()
    trainer.add_callback(ReferenceCurve(curve, lambda: reference.accuracy(model, location, *dev)))
    curve.start = time.perf_counter()
    trainer.train()
    return curve
