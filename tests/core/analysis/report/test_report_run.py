"""What a report knows of each example: right or wrong, confidence, score, labels and length."""

import numpy as np
import pytest
from gptask import Prediction
from gptask.analysis.compare.records import read_run
from gptask.analysis.report.report_run import report_runs
from gptask_tasks.classification import Classification
from gptask_tasks.qa import QuestionAnswering

from tests.support.run_folders import (
    THREE_LABELS,
    hotel_reviews,
    rewrite,
    write_chinese_run,
    write_review_run,
    write_run,
)


def run_of(folder):
    (run,), damaged = report_runs([read_run(folder)])
    assert not damaged
    return run


def test_accuracy_tells_right_from_wrong(tmp_path):
    run = run_of(write_review_run(tmp_path / "run"))
    right = [row["prediction"] == row["references"]["label"] for row in run.rows]
    assert run.correctness_metric == "accuracy"
    np.testing.assert_array_equal(run.right, right)
    np.testing.assert_array_equal(run.confidence, [row["score"] for row in run.rows])
    np.testing.assert_array_equal(run.example_scores["accuracy"], 100.0 * np.asarray(right))
    assert run.true_labels == [[row["references"]["label"]] for row in run.rows]
    np.testing.assert_array_equal(run.input_lengths, [len(row["text"]) for row in run.rows])
    assert not run.right[run.worst_first[0]]
    assert run.right[run.worst_first[-1]]


def test_exact_match_tells_right_from_wrong_if_f1_is_the_main_metric(tmp_path):
    examples = [{"context": "Rome is old.", "question": "What is old?", "answers": ["Rome"]} for _ in range(3)]
    for number, example in enumerate(examples):
        example["question"] += "!" * number
    predictions = [Prediction("Rome", 0.9), Prediction("old Rome", 0.5), Prediction("London", 0.8)]
    for example in examples:
        example["answer_start"] = [0]
    run = run_of(write_run(tmp_path / "run", QuestionAnswering(), examples, predictions))
    assert run.directed_metrics[0] != run.correctness_metric
    assert run.right.tolist() == [True, False, False]
    assert run.worst_first.tolist() == [2, 1, 0]
    assert run.true_labels is None


def test_a_metric_without_a_hit_does_not_tell_right_from_wrong(tmp_path):
    examples = hotel_reviews(4)
    wrong = [Prediction(THREE_LABELS[THREE_LABELS.index(e["label"]) - 1], 0.5) for e in examples]
    task = Classification(labels=THREE_LABELS)
    assert run_of(write_run(tmp_path / "run", task, examples, wrong)).correctness_metric is None


def test_a_corpus_metric_is_computed_for_each_example_alone(tmp_path):
    run = run_of(write_chinese_run(tmp_path / "run", 10, noise=0.3))
    metric = run.record.metric("bleu")
    scores = [metric.aggregate(row[None]) for row in run.statistics("bleu")]
    np.testing.assert_allclose(run.example_scores["bleu"], scores)
    assert run.example_scores["bleu"][run.worst_first[0]] == min(scores)
    assert run.right is None


def test_ties_of_the_main_metric_are_broken_by_the_next(tmp_path):
    run = run_of(write_chinese_run(tmp_path / "run", 40, noise=0.6))
    bleu, chrf = (run.example_scores[name][run.worst_first] for name in ("bleu", "chrf"))
    assert (np.diff(bleu) >= 0).all()
    assert (np.diff(chrf)[np.diff(bleu) == 0] >= 0).all()
    assert (np.diff(bleu) == 0).any()


def test_a_metric_that_cant_tell_examples_apart_comes_last(tmp_path):
    run = run_of(write_review_run(tmp_path / "run"))
    assert run.directed_metrics.index("mcc") < run.directed_metrics.index("ece")
    assert set(run.example_scores["mcc"]) == {0.0}
    assert list(run.example_scores) == ["accuracy", "f1_macro", "f1_micro", "ece", "mcc"]


def test_a_row_without_a_score_leaves_the_run_without_confidence(tmp_path):
    folder = write_review_run(tmp_path / "run")
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace('"score"', '"other"')
    rewrite(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    assert run_of(folder).confidence is None


def test_a_score_that_is_null_leaves_the_run_without_confidence(tmp_path):
    folder = write_review_run(tmp_path / "run")
    text = (folder / "predictions.jsonl").read_text()
    rewrite(folder / "predictions.jsonl", text.replace('"score": ', '"score": null, "old": ', 1))
    assert run_of(folder).confidence is None


def test_run_names_are_the_shortest_that_differ(tmp_path):
    folders = [write_review_run(tmp_path / name / "2026", seed=k) for k, name in enumerate("xy")]
    runs, _ = report_runs([read_run(folder) for folder in folders])
    assert [(run.letter, run.name) for run in runs] == [("A", "x/2026"), ("B", "y/2026")]


@pytest.mark.parametrize(("number", "letter"), [(0, "A"), (25, "Z"), (26, "AA")])
def test_runs_have_letters(number, letter):
    from gptask.analysis.report.report_run import _letter

    assert _letter(number) == letter
