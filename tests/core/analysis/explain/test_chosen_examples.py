"""Which of a run's own test examples are explained, and in which order."""

import json

import pytest
from gptask import Prediction
from gptask.analysis.explain.chosen_examples import chosen_examples
from gptask.errors import UserError
from gptask_tasks.classification import Classification

from tests.support.run_folders import hotel_reviews, rewrite, write_chinese_run, write_review_run, write_run


def rows_of(folder):
    return {row["id"]: row for row in map(json.loads, (folder / "predictions.jsonl").open(encoding="utf-8"))}


def test_the_worst_are_the_most_confident_of_the_wrong_ones(tmp_path):
    folder = write_review_run(tmp_path / "run", hotel_reviews(25))
    rows, (inputs, order) = rows_of(folder), chosen_examples(folder, "worst", 1000)
    chosen = [rows[entry.example["id"]] for entry, _ in inputs]
    wrong = [row for row in rows.values() if row["prediction"] != row["references"]["label"]]
    assert chosen == sorted(wrong, key=lambda row: -row["score"])
    entry, reference = inputs[0]
    assert entry.example == {"id": chosen[0]["id"], "text": chosen[0]["text"]}
    assert reference == chosen[0]["references"]["label"]
    assert order == "wrong predictions, the most confident first"
    few, order = chosen_examples(folder, "worst", 3)
    assert [entry.example for entry, _ in few] == [entry.example for entry, _ in inputs[:3]]
    assert order.endswith(f"the first 3 of {len(wrong)}")


def test_the_most_surprising_have_the_least_probable_reference(tmp_path):
    folder = write_review_run(tmp_path / "run", hotel_reviews(25))
    rows, (inputs, order) = rows_of(folder), chosen_examples(folder, "surprising", 1000)
    chosen = [rows[entry.example["id"]] for entry, _ in inputs]
    probabilities = [row["probabilities"][row["references"]["label"]] for row in chosen]
    assert probabilities == sorted(probabilities)
    assert len(chosen) == 25
    assert order == "the lowest probability of the reference first"


def test_of_several_labels_each_counts(tmp_path):
    tables = [{"joy": 0.9, "anger": 0.9}, {"joy": 0.6, "anger": 0.2}, {"joy": 0.1, "anger": 0.1}]
    examples = [
        {"text": f"text {n}", "labels": labels} for n, labels in enumerate([["joy"], ["joy"], ["joy", "anger"]])
    ]
    predictions = [Prediction([label for label, p in table.items() if p > 0.5], None, table) for table in tables]
    task = Classification(labels=["joy", "anger"], multi_label=True)
    inputs, _ = chosen_examples(write_run(tmp_path / "run", task, examples, predictions), "surprising", 10)
    assert inputs[0].reference == ["joy", "anger"]
    assert [entry.example["text"] for entry, _ in inputs] == ["text 2", "text 0", "text 1"]  # 0.01, 0.09, 0.48


def test_written_texts_are_ordered_by_the_metric_and_by_the_report(tmp_path):
    folder = write_chinese_run(tmp_path / "run", 40)
    inputs, order = chosen_examples(folder, "worst", 5)
    assert order.startswith("the lowest values of ")
    assert order.endswith("; the first 5 of 20")
    assert inputs[0].reference == rows_of(folder)[inputs[0].entry.example["id"]]["references"]["target"][0]
    surprising, order = chosen_examples(folder, "surprising", 100)
    assert len(surprising) == 10
    assert order == "wrong or low-scoring predictions, the most confident first"


def test_what_can_not_be_ordered_is_refused(tmp_path):
    folder = write_review_run(tmp_path / "run", hotel_reviews(5), skill=50)
    with pytest.raises(UserError, match=r"has no such test examples .* give a file"):
        chosen_examples(folder, "worst", 10)
    rewrite(folder / "predictions.jsonl", "{}\n")
    with pytest.raises(UserError, match=r"input=worst reads the run's own .*is not a prediction of a gptask run"):
        chosen_examples(folder, "worst", 10)
    texts = [json.dumps({k: v for k, v in row.items() if k not in ("score", "probabilities")})
             for row in rows_of(write_chinese_run(tmp_path / "chinese", 4)).values()]  # fmt: skip
    rewrite(tmp_path / "chinese" / "predictions.jsonl", "\n".join(texts) + "\n")
    with pytest.raises(UserError, match="no probabilities and no scores to order by; take input=worst"):
        chosen_examples(tmp_path / "chinese", "surprising", 10)
