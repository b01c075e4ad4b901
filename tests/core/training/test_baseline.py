"""Baselines: predictions without a model, and a linear model of words, against scikit-learn's own."""

import json
import logging

import numpy as np
import pytest
from gptask import Prediction, train
from gptask.analysis.compare.records import read_run
from gptask.analysis.report.page import report_page
from gptask.plugins.task import most_frequent
from gptask.training.baseline import LINEAR_MODEL, LinearModel, baseline_scores
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.summarization import Summarization
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline, make_union

from tests.support.configs import small_config

WORDS = {"a": ["good", "fine", "great", "nice"], "b": ["bad", "dull", "poor", "weak"], "c": ["so", "okay", "fair"]}


def reviews(count: int, seed: int) -> tuple[dict, ...]:
    """Texts of four words, most of them of the class's own; class b is the most frequent."""
    draw, examples = np.random.default_rng(seed), []
    for number, label in enumerate(draw.choice(list("abc"), count, p=[0.3, 0.5, 0.2]).tolist()):
        words = [str(draw.choice(WORDS[label if draw.random() < 0.6 else "c"])) for _ in range(4)]
        examples.append({"id": str(number), "text": " ".join(words), "label": label, "group": number})
    return tuple(examples)


ACCURACY = Classification(labels=["a", "b", "c"]).metrics()[0]
TRAIN, VALIDATION, TEST = reviews(300, 1), reviews(60, 2), reviews(100, 3)


@pytest.fixture(scope="module")
def scores():
    task = Classification(labels=["a", "b", "c"])
    metric = task.metrics()[0]
    rows = np.ones((len(TEST), 1))  # a run that is always right
    return baseline_scores(task, metric, rows, TEST, {"train": TRAIN, "validation": VALIDATION})


def test_the_most_frequent_label_scores_as_scikit_learns_dummy(scores):
    texts, labels = zip(*((e["text"], e["label"]) for e in TRAIN), strict=True)
    dummy = DummyClassifier(strategy="most_frequent").fit(texts, labels)
    expected = 100 * accuracy_score([e["label"] for e in TEST], dummy.predict([e["text"] for e in TEST]))
    baseline = scores["most frequent label"]
    assert (baseline["metric"], baseline["score"]["value"]) == ("accuracy", pytest.approx(expected))
    assert baseline["verdict"]["word"] == "better"


def test_the_linear_model_scores_as_scikit_learns_own(scores):
    truth = [e["label"] for e in TEST]
    accuracies = []
    for strength in (1.0, 10.0, 100.0):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        model = make_pipeline(make_union(words, letters), LogisticRegression(C=strength, max_iter=1000))
        model.fit([e["text"] for e in TRAIN], [e["label"] for e in TRAIN])
        validated = accuracy_score([e["label"] for e in VALIDATION], model.predict([e["text"] for e in VALIDATION]))
        accuracies.append((validated, -strength, accuracy_score(truth, model.predict([e["text"] for e in TEST]))))
    assert scores[LINEAR_MODEL]["score"]["value"] == pytest.approx(100 * max(accuracies)[2], abs=0.01)
    assert scores[LINEAR_MODEL]["score"]["value"] > scores["most frequent label"]["score"]["value"] + 10


def test_a_run_that_is_not_better_is_a_warning(caplog):
    task = Classification(labels=["a", "b", "c"])
    rows = np.array([[float(e["label"] == "b")] for e in TEST])  # always the most frequent label
    with caplog.at_level(logging.WARNING):
        scores = baseline_scores(task, task.metrics()[0], rows, TEST, {"train": TRAIN, "validation": VALIDATION})
    assert scores["most frequent label"]["verdict"]["word"] == "same"
    assert scores[LINEAR_MODEL]["verdict"]["word"] == "worse"
    assert caplog.text.count("the run is not better in accuracy than the baseline") == 2


def test_texts_with_any_number_of_labels_have_a_threshold():
    many = [
        [e | {"labels": [e["label"], "c"] if "so" in e["text"] else [e["label"]]} for e in split]
        for split in (TRAIN, VALIDATION, TEST)
    ]
    task = Classification(labels=["a", "b", "c"], multi_label=True)
    model = LinearModel(["text"], "labels", many=True)
    model.fit(task.metrics()[0], {"train": tuple(many[0]), "validation": tuple(many[1])})
    predictions = model.predict(many[2])
    assert model.threshold != 0.5
    assert {len(prediction.value) for prediction in predictions} >= {1, 2}
    hits = np.mean([set(p.value) == set(e["labels"]) for p, e in zip(predictions, many[2], strict=True)])
    assert hits > 0.5


def test_chinese_texts_are_told_apart_by_their_characters():
    rows = [{"text": text, "label": label} for text, label in [("这家酒店非常好", "好"), ("房间太脏很差", "差")] * 20]
    model = LinearModel(["text"], "label", many=False)
    model.fit(ACCURACY, {"train": tuple(rows), "validation": ()})
    assert [p.value for p in model.predict([{"text": "非常好的酒店"}, {"text": "很脏很差"}])] == ["好", "差"]


def test_one_class_is_predicted_without_a_model():
    model = LinearModel(["text"], "label", many=False)
    model.fit(ACCURACY, {"train": ({"text": "x", "label": "only"},), "validation": ()})
    assert model.predict(TEST)[0].value == "only"


def test_a_large_training_set_is_drawn_from_and_its_name_says_so(monkeypatch):
    monkeypatch.setattr("gptask.training.baseline.MAX_LINEAR_EXAMPLES", 50)
    model = LinearModel(["text"], "label", many=False)
    name = model.fit(ACCURACY, {"train": TRAIN, "validation": ()})
    assert name == " on 50 of 300 examples"


DOCUMENT = "One came. Two went! Three stayed? Four left."


@pytest.mark.parametrize(
    ("task", "example", "value"),
    [
        (Sentiment(labels=["a", "b", "c"]), {"text": "x"}, "b"),
        (Classification(labels=["a"], multi_label=True), {"text": "x"}, ["a"]),
        (Translation(), {"source": "Guten Tag"}, "Guten Tag"),
        (Summarization(), {"document": DOCUMENT}, "One came.\nTwo went!\nThree stayed?"),
        (Summarization(language="zh"), {"document": "一。二！三？四。"}, "一。\n二！\n三？"),
        (QuestionAnswering(), {"context": "c", "question": "q"}, ""),
        (TokenTagging(plain=True), {"tokens": ["x", "y"]}, [("N", 0, 1), ("N", 1, 2)]),
        (TokenTagging(plain=False), {"tokens": ["x", "y"]}, []),
    ],
)
def test_tasks_predict_without_a_model(task, example, value):
    tag = "N" if getattr(task, "plain", False) else "O"
    train = tuple({"label": label, "labels": ["a", "b"][: 1 + (label == "b")], "tags": [tag, tag]} for label in "abb")
    prediction = task.baseline_prediction(example, train)
    got = [tuple(span.values()) for span in prediction.value] if isinstance(task, TokenTagging) else prediction.value
    assert got == value


def test_a_conversation_has_no_prediction_without_a_model():
    assert TextGeneration().baseline_prediction({"messages": []}, ()) is None


def test_of_equally_frequent_values_the_first_is_taken():
    assert most_frequent(({"label": "b"}, {"label": "a"}), "label") == "b"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    return train(small_config(folder, task=Sentiment(), baseline=True, trainer={"max_steps": 1, "accelerator": "cpu"}))


def test_a_run_keeps_and_shows_its_baselines(run):
    result = json.loads((run.folder / "metrics.json").read_text())
    assert list(result["baselines"]) == ["most frequent label", LINEAR_MODEL]
    assert result["baselines"]["most frequent label"]["score"]["n"] == result["n"]
    page = report_page([read_run(run.folder)])
    assert "most frequent label: accuracy" in page


def test_alike_predictions_are_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Sentiment, "prediction", lambda self, example, outputs: Prediction("positive", 1.0, {}))
    with caplog.at_level(logging.WARNING):
        run = train(small_config(tmp_path, task=Sentiment(), trainer={"max_steps": 1, "accelerator": "cpu"}))
    assert "predictions are the same: 'positive'" in caplog.text
    assert json.loads((run.folder / "metrics.json").read_text())["baselines"] == {}
