"""Groups the outputs of encoded items by example; a long example is encoded as several items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction


def predictions_by_example(
    task: Task, examples: Sequence[Example], owners: np.ndarray, outputs: dict[int, Any]
) -> tuple[list[Example], list[Prediction]]:
    """Return the examples that have outputs, and what the task predicts for each from the outputs of its items.

    ``owners`` (items,) holds the number of each item's example, ``outputs`` the head's output by number of the item.
    """
    outputs_by_example: dict[int, list[Any]] = {}
    for item in sorted(outputs):
        outputs_by_example.setdefault(int(owners[item]), []).append(outputs[item])
    examples_with_outputs = [examples[number] for number in outputs_by_example]
    pairs = zip(examples_with_outputs, outputs_by_example.values(), strict=True)
    return examples_with_outputs, [task.prediction(example, item_outputs) for example, item_outputs in pairs]
