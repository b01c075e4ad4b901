"""What is scored when a run is finished, and what of it is written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gptask
from gptask import MeanMetric, Prediction
from gptask.plugins.types import Example
from gptask.runs.predictions_file import prediction_fields
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config


class Second(MeanMetric):
    """What a second look found out."""

    final = True

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        return [prediction.extra["second"]]


@dataclass
class Reviewed(Sentiment):
    """A sentiment whose predictions are looked at once more."""

    def annotate_predictions(self, predictions, examples):
        return [
            replace(p, extra={"second": float(e["text"] == examples[0]["text"])})
            for p, e in zip(predictions, examples, strict=True)
        ]

    def metrics(self):
        return [*super().metrics(), Second("second")]


def test_a_test_is_reviewed_before_it_is_scored_and_validation_is_not(tmp_path):
    run = gptask.train(small_config(tmp_path, task=Reviewed(), trainer={"max_epochs": 1, "accelerator": "cpu"}))
    assert run.metrics["metrics"]["second"]["value"] == 10.0  # one of ten
    rows = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [row["extra"]["second"] for row in rows] == [1.0] + [0.0] * 9
    assert "val/accuracy" in (text := (run.folder / "metrics.csv").read_text())
    assert "val/second" not in text


def test_nothing_more_to_say_is_not_written():
    assert prediction_fields(Prediction("yes", 0.5)) == {"prediction": "yes", "score": 0.5}
