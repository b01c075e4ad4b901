"""Outputs of encoded items, brought together by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction


def predictions_by_example(
    task: Task, examples: Sequence[Example], owners: np.ndarray, outputs: dict[int, Any]
) -> tuple[list[Example], list[Prediction]]:
    """Bring the outputs of encoded items together by example and let the task turn them into predictions."""
    grouped: dict[int, list[Any]] = {}
    for row in sorted(outputs):
        grouped.setdefault(int(owners[row]), []).append(outputs[row])
    seen = [examples[number] for number in grouped]
    return seen, [task.prediction(e, o) for e, o in zip(seen, grouped.values(), strict=True)]
