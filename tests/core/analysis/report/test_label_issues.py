"""Labels that are likely wrong: as good as cleanlab's own, on rows that no run has learned, refused for other tasks."""

import json
import sys

import numpy as np
import pytest
from cleanlab.filter import find_label_issues as issues_of_cleanlab
from cleanlab.rank import get_label_quality_scores
from gptask import Config, Prediction
from gptask.analysis.compare.records import read_run
from gptask.analysis.report.label_issues import find_label_issues, rank_label_issues
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.runs.atomic_write import write_json
from gptask.runs.config_file import write_config
from gptask.runs.manifest import write_manifest
from gptask.runs.predictions_file import write_predictions
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.run_folders import MEASURED, TWO_LABELS, sentences


def noisy_labels(seed, labels=2, rows=2000, skill=3.0, flipped=0.05):
    """True labels, given ones of which some are flipped, and probabilities of a model, rounded as in a run."""
    draw = np.random.default_rng(seed)
    true = draw.integers(0, labels, rows)
    logits = draw.normal(size=(rows, labels)) * 2 + skill * np.eye(labels)[true]
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).round(6)
    given = true.copy()
    wrong = draw.choice(rows, round(flipped * rows), replace=False)
    given[wrong] = (given[wrong] + draw.integers(1, labels, len(wrong))) % labels
    return true, given, probabilities


# --- against cleanlab -----------------------------------------------------------------------------------------------


def precision(rows, is_wrong, k):
    """The share of wrong labels among the first k rows, or among all where they are fewer."""
    return is_wrong[rows[:k]].mean()


@pytest.mark.parametrize("labels", [2, 6])
@pytest.mark.parametrize("skill", [3.0, 5.0])
def test_the_first_k_are_as_precise_as_cleanlabs_own(labels, skill):
    against_default = []
    for seed in range(4):
        true, given, probabilities = noisy_labels(seed, labels, skill=skill)
        is_wrong = given != true
        ours, predicted, qualities = rank_label_issues(given, probabilities)
        by = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
        theirs = issues_of_cleanlab(given, probabilities, filter_by="low_self_confidence", **by)
        np.testing.assert_array_equal(ours, theirs[predicted[theirs] != given[theirs]])
        np.testing.assert_array_equal(qualities, get_label_quality_scores(given, probabilities))
        default = issues_of_cleanlab(given, probabilities, **by)
        for k in (10, 30, 100):
            assert precision(ours, is_wrong, k) >= precision(theirs, is_wrong, k)
            against_default.append(precision(ours, is_wrong, k) - precision(default, is_wrong, k))
        assert precision(ours, is_wrong, 30) > 8 * is_wrong.mean()
        assert (np.diff(qualities[ours]) >= 0).all()
    assert np.mean(against_default) >= 0


def test_a_row_whose_label_is_predicted_is_not_flagged():
    _, given, probabilities = noisy_labels(0, 6, skill=1.0)
    flagged, predicted, _ = rank_label_issues(given, probabilities)
    assert len(flagged)
    assert (predicted[flagged] != given[flagged]).all()
    both = np.full((4, 2), 0.5)
    assert not len(rank_label_issues(np.array([0, 1, 0, 1]), both)[0])


def test_labels_without_rows_and_labels_that_are_all_right_are_no_error():
    true, _, probabilities = noisy_labels(1, 3, skill=30.0)
    unused = np.concatenate([probabilities, np.zeros((len(true), 2))], 1)
    assert not len(rank_label_issues(true, unused)[0])


def test_without_cleanlab_the_message_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(UserError, match=r"not installed \(cleanlab.filter\): pip install 'gptask\[labels\]'"):
        rank_label_issues(np.array([0, 1]), np.eye(2))


# --- runs -----------------------------------------------------------------------------------------------------------


def write_scored(folder, rows, start=0, learned=(), names=TWO_LABELS, method="train", parent=None, seed=0):
    """A run that predicts sentences of which 5% have the wrong label: the wrong ids, and the folder."""
    examples = sentences(start + rows)[start:]
    draw = np.random.default_rng(seed)
    wrong = draw.choice(rows, rows // 20, replace=False)
    predictions = []
    for number, example in enumerate(examples):
        true = TWO_LABELS.index(example["label"])
        example["label"] = names[1 - true if number in wrong else true]
        likely = float(draw.uniform(0.94, 0.96))  # above the mean probability of a label, by which rows are counted
        table = dict(zip(names, (likely, 1 - likely) if true == 0 else (1 - likely, likely), strict=True))
        predictions.append(Prediction(names[true], likely, table))
    write_predicted(folder, Sentiment(labels=list(names)), examples, predictions, learned, method, parent)
    return {examples[k]["id"] for k in wrong}, folder


def write_predicted(folder, task, examples, predictions, learned=(), method="train", parent=None):
    """The finished run of these predictions, without its model and without metrics, which take time."""
    folder.mkdir(parents=True)
    plugin = plugin_of(task)
    write_config(folder, Config(task=task), plugin)
    write_predictions(folder / "predictions.jsonl", task, examples, predictions, [{}] * len(examples))
    result = {"task": plugin.name, "split": "test", "n": len(examples), "seed": 13, "metrics": {}}
    write_json(folder / "metrics.json", MEASURED | result)
    splits = {"train": np.array(learned, np.int64), "test": np.array([e["digest"] for e in examples], np.int64)}
    if method == "evaluate":
        splits = {"train": splits["test"]}
    write_manifest(folder, "0" * 16, method, splits, parent)
    return folder


def rewritten(folder, text):
    """The run with other predictions; its manifest agrees with them."""
    (folder / "predictions.jsonl").write_text(text)
    write_manifest(folder, "0" * 16, "train", {"train": np.zeros(0, np.int64)})
    return folder


def issues_of(*folders):
    return find_label_issues([read_run(folder) for folder in folders])


def test_the_wrong_labels_of_a_test_split_are_found_and_counted(tmp_path):
    wrong, folder = write_scored(tmp_path / "run", 200)
    issues = issues_of(folder)
    assert {issue.row["id"] for issue in issues.issues} == wrong
    assert (issues.n, issues.disagreeing, issues.learned, issues.share) == (200, 10, 0, 5.0)
    counts = {(pair.given, pair.suggested): pair.count for pair in issues.pairs}
    given = [json.loads(line)["references"]["label"] for line in (folder / "predictions.jsonl").open()]
    assert sum(counts.values()) == 10
    assert {pair.given: pair.total for pair in issues.pairs} == {name: given.count(name) for name in TWO_LABELS}
    assert issues.summary.startswith("10 of 200 labels (5.0%) are likely wrong: ")


def test_a_line_has_the_place_the_texts_both_labels_and_their_probabilities(tmp_path):
    _, folder = write_scored(tmp_path / "run", 100)
    lines = list(issues_of(folder).lines())
    rows = {row["id"]: row for row in map(json.loads, (folder / "predictions.jsonl").open())}
    assert [line["rank"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["label_quality"] for line in lines] == sorted(line["label_quality"] for line in lines)
    for line in lines:
        row = rows[line["id"]]
        assert (line["file"], line["row"]) == ("test.jsonl", int(line["id"].split(":")[1]))
        assert (line["text"], line["given_label"]) == (row["text"], row["references"]["label"])
        assert line["suggested_label"] == row["prediction"] != line["given_label"]
        assert line["given_probability"] == line["label_quality"] == row["probabilities"][line["given_label"]]
        assert line["suggested_probability"] == row["score"]
        assert line["run"] == str(folder)


@pytest.mark.parametrize(
    ("example_id", "place"),
    [
        ("train.csv:42", ("train.csv", 42)),
        ("a/train.csv.gz:42", ("a/train.csv.gz", 42)),
        ("rows.json record 7", ("rows.json", 7)),
        ("rows.json#train record 7", ("rows.json#train", 7)),
        ("rows.parquet row 7", ("rows.parquet", 7)),
        ("TREC.label:3", ("TREC.label", 3)),  # named in the config
        ("owner/name[train] row 3", ("owner/name[train]", 3)),
        ("v1.2:34", (None, None)),
        ("review 17", (None, None)),
        (17, (None, None)),
    ],
)
def test_only_the_id_of_a_row_without_its_own_names_a_place(example_id, place, tmp_path):
    _, folder = write_scored(tmp_path / "run", 40)
    record = read_run(folder)
    record.config["data"] |= {"train": ["trec/TREC.label"], "path": "owner/name"}
    record.predictions.rows = [row | {"id": example_id} for row in record.predictions.rows]
    assert {(line["file"], line["row"]) for line in find_label_issues([record]).lines()} == {place}


def test_an_input_that_is_called_like_an_entry_gets_another_name(tmp_path):
    _, folder = write_scored(tmp_path / "run", 40)
    text = (folder / "predictions.jsonl").read_text()
    (line, *_) = issues_of(rewritten(folder, text.replace('"text": "', '"rank": "'))).lines()
    assert line["rank"] == 1
    assert line["input_rank"].startswith("sentence ")


# --- halves of train ------------------------------------------------------------------------------------------------


def test_two_runs_on_a_half_each_find_the_wrong_labels_of_both(tmp_path):
    _, first = write_scored(tmp_path / "half1", 4, 900, learned=range(100))
    _, second = write_scored(tmp_path / "half2", 4, 900, learned=range(100, 200))
    wrong, on_second = write_scored(tmp_path / "on2", 100, 100, method="evaluate", parent=str(first), seed=1)
    also_wrong, on_first = write_scored(tmp_path / "on1", 100, method="evaluate", parent=str(second), seed=2)
    issues = issues_of(on_second, on_first)
    assert {issue.row["id"] for issue in issues.issues} == wrong | also_wrong
    assert {issue.record.folder for issue in issues.issues} == {on_first, on_second}
    assert (issues.n, issues.learned) == (200, 0)
    with pytest.raises(UserError, match=r"4 rows are predicted by .*half2 and by .*half1; with --labels each row"):
        issues_of(first, second)


def test_rows_that_a_run_has_learned_are_left_out_and_counted(tmp_path):
    wrong, folder = write_scored(tmp_path / "run", 200, learned=range(120))
    issues = issues_of(folder)
    assert {issue.row["id"] for issue in issues.issues} == {name for name in wrong if int(name.split(":")[1]) >= 120}
    assert (issues.n, issues.learned) == (80, 120)
    assert issues.summary.endswith(" 120 rows that the run has learned are left out.")


def test_a_run_that_has_learned_all_its_rows_is_refused_with_their_number_and_the_way_out(tmp_path):
    _, folder = write_scored(tmp_path / "run", 4, 900, learned=range(50))
    _, on_train = write_scored(tmp_path / "train", 40, method="evaluate", parent=str(folder))
    with pytest.raises(UserError, match=r"train: all 40 rows are among those that .* has learned.* data\.half=1 and"):
        issues_of(on_train)
    record = read_run(on_train)
    record.config["data"]["half"], record.config["parent"] = 1, "outputs/half1"
    with pytest.raises(UserError, match=r"other half: gptask evaluate run=outputs/half1 split=train data\.half=2$"):
        find_label_issues([record])


# --- what is refused ------------------------------------------------------------------------------------------------


def test_tasks_without_one_label_an_example_are_refused_by_name(tmp_path):
    answers = [{"source": "a", "target": ["b"], "id": "1", "digest": 1, "group": 1}]
    with pytest.raises(UserError, match=r"one label each, and the targets of 'translation' are target \(texts\)"):
        issues_of(write_predicted(tmp_path / "a", Translation(), answers, [Prediction("b", 0.5)]))
    task = Classification(labels=TWO_LABELS, multi_label=True)
    examples = [example | {"labels": TWO_LABELS[:1]} for example in sentences(4)]
    predictions = [Prediction(TWO_LABELS[:1], probabilities={"negative": 0.9, "positive": 0.1})] * 4
    with pytest.raises(UserError, match=r"the targets of 'classification' are labels \(labels\)"):
        issues_of(write_predicted(tmp_path / "b", task, examples, predictions))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"probabilities": {', '"others": {', r"the predictions of 'sentiment' have none"),
        ('"negative": 0', '"other": 0', r"different labels: negative, other are in one of them"),
        ('"negative": 0', '"negative": 7', r"probabilities of row test\.jsonl:0 are not in 0 to 1"),
        ('"label": "negative"', '"label": "good"', r"the label of row \S+ is 'good', none of those .* negative, pos"),
        ('"label": "negative"', '"label": ["negative"]', r"the label of row \S+ is \['negative'\], none of those"),
        ('"label": "negative"', '"label": "positive"', r"all 40 rows have the label 'positive'"),
        ('"digest": "8', '"digest": "x', r"a digest can't be read, its content is damaged"),
    ],
)
def test_predictions_that_say_nothing_of_labels_are_refused(tmp_path, old, new, message):
    _, folder = write_scored(tmp_path / "run", 40)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    changed = lines if "other" not in new else lines[:1]
    text = "\n".join(line.replace(old, new) if line in changed else line for line in lines)
    with pytest.raises(UserError, match=message):
        issues_of(rewritten(folder, text + "\n"))


def test_runs_of_different_tasks_or_label_sets_are_refused(tmp_path):
    _, first = write_scored(tmp_path / "a", 40)
    _, second = write_scored(tmp_path / "b", 40, 40, names=["bad", "good"])
    with pytest.raises(UserError, match=r"different labels: bad, good, negative, positive are in one of them"):
        issues_of(first, second)
    record = read_run(second)
    record.result["task"] = "classification"
    with pytest.raises(UserError, match=r"runs of one task, got classification, sentiment: name one with --task"):
        find_label_issues([read_run(first), record])
