"""One task at run time: its head, its data, and the outputs collected from its head."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.model.out_of_memory import BatchDivider
from gptask.model.predictions import predictions_by_example
from gptask.plugins.metric import Metric
from gptask.plugins.task import Task, with_options
from gptask.plugins.types import Example, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from gptask.data.datamodule import PaddedBatch
    from gptask.model.engine.activation_cache import ActivationCache
    from gptask.model.heads import Head


@dataclass
class BatchTrial:
    """The training batch of a task that takes the most memory, among those of the first epoch.

    ``seconds`` are those of its forward and backward pass in the first epoch, and in a later one, which may read
    activations from a cache.
    """

    loader: Any
    number: int
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def lengths(self) -> list[int]:
        """The lengths of its sequences."""
        sampler = self.loader.batch_sampler
        return [int(sampler.lengths[row]) for row in sampler.batches[self.number]]

    @property
    def tokens(self) -> int:
        """Its padded tokens."""
        return int(self.loader.batch_sampler.costs[self.number])


@dataclass
class TaskRuntime:
    """What a trainer needs of one task; one of several tasks logs its metrics under its name (``val/qa/f1``).

    ``task`` predicts: it is a copy with the options that validation chose, once there are any.
    """

    name: str
    task: Task
    head: Head
    data: Any
    weight: float = 1.0  # of its loss
    single_task: bool = True
    outputs: dict[int, Any] = field(default_factory=dict)  # row of the encoded item -> the head's output
    losses: list[tuple[int, Any]] = field(default_factory=list)  # of validation batches, each with its examples
    tuned_options: dict[str, Any] = field(default_factory=dict)  # options of the task that validation chose
    activation_caches: dict[str, ActivationCache | None] = field(default_factory=dict)  # split -> cached hidden states
    dividers: dict[str, BatchDivider] = field(default_factory=lambda: defaultdict(BatchDivider))  # by split
    trial: BatchTrial | None = None  # of the largest training batch, for the forecast of the cost
    student_loss: Callable[[Head, Tensor, PaddedBatch], Tensor] | None = None  # in training; None: its head's own

    def __post_init__(self) -> None:
        """Keep the task as it was configured."""
        self.configured_task = self.task

    @property
    def prefix(self) -> str:
        """What stands before the names of its metrics."""
        return "" if self.single_task else f"{self.name}/"

    def training_loss(self, hidden: Tensor, batch: PaddedBatch) -> Tensor:
        """The loss of a training batch, from its last hidden states (B, T, C)."""
        if self.student_loss:
            return self.student_loss(self.head, hidden, batch)
        return self.head.loss(hidden, batch)

    def predictions(self, split: str) -> tuple[list[Example], list[Prediction]]:
        """The examples of a split that the head read (all, unless the trainer was limited) and their predictions."""
        return predictions_by_example(
            self.task, self.data.examples(split), self.data.items(split).column("example"), self.outputs
        )

    def mean_loss(self) -> float | None:
        """The mean of the losses of the validation batches, which is the same in any order; None without a batch."""
        examples = sum(rows for rows, _ in self.losses)
        return math.fsum(rows * float(loss) for rows, loss in self.losses) / examples if examples else None

    def set_tuned_options(self, options: dict[str, Any]) -> None:
        """Let a task with options that validation chose predict from now on; none: the task as it was configured."""
        self.tuned_options = options
        self.task = with_options(self.configured_task, options) if options else self.configured_task

    def validation_scores(self) -> Iterator[tuple[Metric, float]]:
        """The task's metrics on validation, the main one first, after its options were tuned on that split."""
        self.set_tuned_options({})
        examples, predictions = self.predictions("validation")
        if examples and (tuned_options := self.task.tune_on_validation(predictions, examples)):
            self.set_tuned_options(tuned_options)
            examples, predictions = self.predictions("validation")
        for metric in (metric for metric in self.task.metrics() if not metric.final):
            statistics = [metric.statistics(p, e) for p, e in zip(predictions, examples, strict=True)]
            yield metric, metric.aggregate(np.asarray(statistics, dtype=float)) if statistics else float("nan")


def normalized_score(metric: Metric, value: float) -> float:
    """A value between the metric's worst, 0, and its best, 100, so that those of several metrics have a mean.

    One that is not finite counts as the worst. Where one end of the range is infinite, a value at distance 1 from the
    other end counts half: 1 bit per byte is 50.
    """
    low, high = metric.range
    if not math.isfinite(value):
        return 0.0
    if math.isinf(low) and math.isinf(high):
        share = 0.5 + math.atan(value) / math.pi
    elif math.isinf(high):
        share = 1 - 1 / (1 + value - low)
    elif math.isinf(low):
        share = 1 / (1 + high - value)
    else:
        share = (value - low) / (high - low)
    return 100 * (share if metric.higher_is_better else 1 - share)
