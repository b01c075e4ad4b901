"""What is scored when a run is finished, and what is written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gptask
from gptask import MeanMetric, Prediction
from gptask.plugins.types import Example
from gptask.runs.predictions_file import prediction_fields
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config


class AnnotationMetric(MeanMetric):
    """A metric of what `annotate_predictions` added; it is final, so validation leaves it out."""

    final = True

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        return [prediction.extra["second"]]


@dataclass
class AnnotatedSentiment(Sentiment):
    """A sentiment task that annotates its predictions."""

    def annotate_predictions(self, predictions, examples):
        return [
            replace(p, extra={"second": float(e["text"] == examples[0]["text"])})
            for p, e in zip(predictions, examples, strict=True)
        ]

    def metrics(self):
        return [*super().metrics(), AnnotationMetric("second")]


def test_predictions_are_annotated_before_the_test_is_scored_and_not_in_validation(tmp_path):
    options = {"max_epochs": 1, "accelerator": "cpu"}
    run = gptask.train(small_config(tmp_path, task=AnnotatedSentiment(), trainer=options))
    assert run.metrics["metrics"]["second"]["value"] == 10.0  # one of ten
    rows = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [row["extra"]["second"] for row in rows] == [1.0] + [0.0] * 9
    assert "val/accuracy" in (text := (run.folder / "metrics.csv").read_text())
    assert "val/second" not in text


def test_empty_fields_of_a_prediction_are_not_written():
    assert prediction_fields(Prediction("yes", 0.5)) == {"prediction": "yes", "score": 0.5}
