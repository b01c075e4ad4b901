"""predictions.jsonl."""

import json

from gptask import Prediction
from gptask.runs.predictions_file import write_predictions
from gptask_tasks.sentiment import Sentiment


def test_a_line_holds_inputs_references_prediction_and_statistics(tmp_path):
    example = {"id": "a.jsonl:1", "digest": 1, "group": -(2**63), "text": "很好", "label": "positive"}
    prediction = Prediction("negative", 0.7500004, {"negative": 0.7500004, "positive": 0.2499996})
    statistics = {"accuracy": [0.0]}
    write_predictions(tmp_path / "predictions.jsonl", Sentiment(), [example], [prediction], [statistics])
    text = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "id": "a.jsonl:1",
        "digest": "8000000000000001",
        "group": "0000000000000000",
        "text": "很好",
        "references": {"label": "positive"},
        "prediction": "negative",
        "score": 0.75,
        "probabilities": {"negative": 0.75, "positive": 0.25},
        "statistics": {"accuracy": [0.0]},
    }
    assert "很好" in text
