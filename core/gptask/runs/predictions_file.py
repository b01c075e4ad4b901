"""predictions.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction
from gptask.runs.atomic_write import json_text, written_whole


def write_predictions(
    path: Path,
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    statistics: Sequence[dict[str, list[float]]],
) -> None:
    """Write one line per test example: id, input fields, digest, prediction, references, probabilities, statistics."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for example, prediction, metric_statistics in zip(examples, predictions, statistics, strict=True):
            values = {
                "id": example["id"],
                "digest": f"{example['digest'] + 2**63:016x}",
                "group": f"{example['group'] + 2**63:016x}",
                **{f.name: example[f.name] for f in task.inputs()},
                "references": {f.name: example[f.name] for f in task.targets()},
                **prediction_fields(prediction),
                "statistics": metric_statistics,
            }
            stream.write(json_text(values) + "\n")


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """The entries of a JSON line that hold a prediction; empty ones are left out."""
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
