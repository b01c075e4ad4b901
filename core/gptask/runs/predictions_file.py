"""predictions.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction


def write_predictions(
    path: Path,
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    statistics: Sequence[dict[str, list[float]]],
) -> None:
    """One line per test example: id, input fields, digest, prediction, references, probabilities, statistics."""
    with path.open("w", encoding="utf-8") as stream:
        for example, prediction, numbers in zip(examples, predictions, statistics, strict=True):
            line = {
                "id": example["id"],
                "digest": f"{example['digest'] + 2**63:016x}",
                "group": f"{example['group'] + 2**63:016x}",
                **{f.name: example[f.name] for f in task.inputs()},
                "references": {f.name: example[f.name] for f in task.targets()},
                **prediction_fields(prediction),
                "statistics": numbers,
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it stands in a JSON line."""
    fields: dict[str, Any] = {"prediction": prediction.value}
    if prediction.score is not None:
        fields["score"] = round(prediction.score, 6)
    if prediction.samples is not None:
        fields["samples"] = prediction.samples
    if prediction.probabilities is not None:
        fields["probabilities"] = {name: round(p, 6) for name, p in prediction.probabilities.items()}
    if prediction.extra:
        fields["extra"] = prediction.extra
    return fields
