"""What is known of each example: right, confident, good by itself, labelled, long."""

import numpy as np
import pytest
from gptask import Prediction
from gptask.analysis.compare.records import read
from gptask.analysis.report.report_run import entries
from gptask_tasks.classification import Classification
from gptask_tasks.qa import QuestionAnswering

from tests.support.run_folders import THREE_LABELS, hotel_reviews, write_chinese_run, write_review_run, write_run


def entry_of(folder):
    (entry,), bad = entries([read(folder)])
    assert not bad
    return entry


def test_accuracy_tells_right_from_wrong(tmp_path):
    entry = entry_of(write_review_run(tmp_path / "run"))
    right = [row["prediction"] == row["references"]["label"] for row in entry.rows]
    assert entry.judge == "accuracy"
    np.testing.assert_array_equal(entry.right, right)
    np.testing.assert_array_equal(entry.confidence, [row["score"] for row in entry.rows])
    np.testing.assert_array_equal(entry.alone["accuracy"], 100.0 * np.asarray(right))
    assert entry.labels == [[row["references"]["label"]] for row in entry.rows]
    np.testing.assert_array_equal(entry.characters, [len(row["text"]) for row in entry.rows])
    assert not entry.right[entry.worst[0]]
    assert entry.right[entry.worst[-1]]


def test_exact_match_judges_where_f1_is_the_main_metric(tmp_path):
    examples = [{"context": "Rome is old.", "question": "What is old?", "answers": ["Rome"]} for _ in range(3)]
    for number, example in enumerate(examples):
        example["question"] += "!" * number
    said = [Prediction("Rome", 0.9), Prediction("old Rome", 0.5), Prediction("London", 0.8)]
    for example in examples:
        example["answer_start"] = [0]
    entry = entry_of(write_run(tmp_path / "run", QuestionAnswering(), examples, said))
    assert entry.directed[0] != entry.judge
    assert entry.right.tolist() == [True, False, False]
    assert entry.worst.tolist() == [2, 1, 0]
    assert entry.labels is None


def test_a_metric_without_a_hit_judges_nothing(tmp_path):
    examples = hotel_reviews(4)
    wrong = [Prediction(THREE_LABELS[THREE_LABELS.index(e["label"]) - 1], 0.5) for e in examples]
    task = Classification(labels=THREE_LABELS)
    assert entry_of(write_run(tmp_path / "run", task, examples, wrong)).judge is None


def test_a_corpus_metric_is_computed_for_each_example_alone(tmp_path):
    entry = entry_of(write_chinese_run(tmp_path / "run", 10, noise=0.3))
    metric = entry.record.metric("bleu")
    each = [metric.aggregate(row[None]) for row in entry.statistics("bleu")]
    np.testing.assert_allclose(entry.alone["bleu"], each)
    assert entry.alone["bleu"][entry.worst[0]] == min(each)
    assert entry.right is None


def test_ties_of_the_main_metric_are_broken_by_the_next(tmp_path):
    entry = entry_of(write_chinese_run(tmp_path / "run", 40, noise=0.6))
    bleu, chrf = (entry.alone[name][entry.worst] for name in ("bleu", "chrf"))
    assert (np.diff(bleu) >= 0).all()
    assert (np.diff(chrf)[np.diff(bleu) == 0] >= 0).all()
    assert (np.diff(bleu) == 0).any()


def test_a_metric_that_cant_tell_examples_apart_stands_behind_the_others(tmp_path):
    entry = entry_of(write_review_run(tmp_path / "run"))
    assert entry.directed.index("mcc") < entry.directed.index("ece")
    assert set(entry.alone["mcc"]) == {0.0}
    assert list(entry.alone) == ["accuracy", "f1_macro", "f1_micro", "ece", "mcc"]


def test_a_row_without_score_takes_the_confidence_away(tmp_path):
    folder = write_review_run(tmp_path / "run")
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace('"score"', '"other"')
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    assert entry_of(folder).confidence is None


def test_a_score_that_is_no_number_takes_the_confidence_away(tmp_path):
    folder = write_review_run(tmp_path / "run")
    text = (folder / "predictions.jsonl").read_text()
    (folder / "predictions.jsonl").write_text(text.replace('"score": ', '"score": NaN, "old": ', 1))
    assert entry_of(folder).confidence is None


def test_run_names_are_the_shortest_that_differ(tmp_path):
    folders = [write_review_run(tmp_path / name / "2026", seed=k) for k, name in enumerate("xy")]
    good, _ = entries([read(folder) for folder in folders])
    assert [(entry.tag, entry.name) for entry in good] == [("A", "x/2026"), ("B", "y/2026")]


@pytest.mark.parametrize(("number", "tag"), [(0, "A"), (25, "Z"), (26, "AA")])
def test_runs_are_tagged_with_letters(number, tag):
    from gptask.analysis.report.report_run import _tag

    assert _tag(number) == tag
