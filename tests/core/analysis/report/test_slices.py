"""The main metric by length and by label."""

import numpy as np
import pytest
from gptask import Prediction
from gptask.analysis.compare.records import read_run
from gptask.analysis.report.disagreements import groups_on_same_examples
from gptask.analysis.report.report_run import report_runs
from gptask.analysis.report.slices import MAX_LABELS, slice_tables
from gptask_tasks.classification import Classification

from tests.support.run_folders import hotel_reviews, write_chinese_run, write_review_run, write_run


def tables_of(*folders):
    runs, _ = report_runs([read_run(folder) for folder in folders])
    return list(slice_tables(groups_on_same_examples(runs))), runs


def test_a_label_task_has_slices_by_length_and_by_label(tmp_path):
    (lengths, labels), (run,) = tables_of(write_review_run(tmp_path / "run", hotel_reviews(200)))
    counts = [scores[0].n for _, scores in lengths.rows]
    assert sum(counts) == 200
    assert len(counts) == 4
    assert max(counts) - min(counts) <= 8  # equal lengths stay together
    for name, (score,) in labels.rows:
        mask = np.asarray([row == [name] for row in run.true_labels])
        assert score.n == mask.sum()
        assert score.value == pytest.approx(100 * run.right[mask].mean())
        assert score.interval[0] <= score.value <= score.interval[1]
    low, high = labels.scale
    assert all(low < score.interval[0] <= score.interval[1] < high for _, (score,) in labels.rows)


def test_a_corpus_metric_is_aggregated_and_not_averaged(tmp_path):
    (lengths,), (run,) = tables_of(write_chinese_run(tmp_path / "run", 40))
    assert lengths.metric == "bleu"
    metric, shortest = (
        run.record.metric("bleu"),
        run.input_lengths <= np.quantile(run.input_lengths, 0.25, method="lower"),
    )
    assert lengths.rows[0][1][0].value == pytest.approx(metric.aggregate(run.statistics("bleu")[shortest]))


def test_runs_on_the_same_examples_share_a_table(tmp_path):
    reviews = hotel_reviews(40)
    same = [write_review_run(tmp_path / name, reviews, seed=k) for k, name in enumerate("ab")]
    tables, _ = tables_of(*same, write_review_run(tmp_path / "c", hotel_reviews(30, seed=3)))
    assert [(table.title, len(table.runs)) for table in tables] == [
        ("By input length", 2),
        ("By true label", 2),
        ("By input length", 1),
        ("By true label", 1),
    ]


def test_inputs_of_one_length_are_one_slice(tmp_path):
    (lengths, _), _ = tables_of(write_review_run(tmp_path / "run", [{"text": "ok", "label": "neutral"}] * 5))
    assert [(name, scores[0].n) for name, scores in lengths.rows] == [("2 characters", 5)]


def test_only_the_most_frequent_of_many_labels_are_slices(tmp_path):
    names = [f"label {k}" for k in range(MAX_LABELS + 5)]
    examples = [{"text": f"text {k}", "labels": names[k : k + 2]} for k in range(len(names))]
    examples.append({"text": "none of them", "labels": []})
    predictions = [Prediction(e["labels"], probabilities=dict.fromkeys(names, 0.5)) for e in examples]
    task = Classification(labels=names, multi_label=True, threshold=0.5)
    (_, labels), _ = tables_of(write_run(tmp_path / "run", task, examples, predictions))
    assert len(labels.rows) == MAX_LABELS + 1
    assert labels.rows[-1][0] == "(no label)"
    assert labels.note == f"The {MAX_LABELS} most frequent of {MAX_LABELS + 5} labels."
    assert labels.rows[0][1][0].n == 2
