"""The task classification: its metrics against scikit-learn, label words, prompts, options, thresholds, the sample."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from gptask import DataError, Field, Kind, Prediction, UserError
from gptask.plugins.metric import score_all
from gptask_tasks.classification import Classification
from gptask_tasks.classification.metrics import best_threshold
from sklearn import metrics as reference

LABELS = ["billing", "delivery", "refund", "other"]
Scored = tuple[list[Prediction], list[dict[str, Any]]]


@pytest.fixture(params=[0, 1, 2])
def single(request: pytest.FixtureRequest) -> Scored:
    """Random labels (the last class neither true nor predicted in one case) with probabilities."""
    generator = np.random.default_rng(request.param)
    k = len(LABELS) - (request.param == 0)
    table = generator.dirichlet([0.5] * k, 200)
    gold = [LABELS[i] for i in generator.integers(0, k, 200)]
    predictions = []
    for row in table:
        probabilities = dict(zip(LABELS, [*row.tolist(), 0.0], strict=False))
        best = max(probabilities, key=probabilities.__getitem__)
        predictions.append(Prediction(best, probabilities[best], probabilities))
    return predictions, [{"label": name} for name in gold]


@pytest.fixture(params=[0, 1])
def multi(request: pytest.FixtureRequest) -> Scored:
    generator = np.random.default_rng(request.param)
    table = generator.random((150, len(LABELS))) ** 2
    predictions = [
        Prediction([n for n, p in zip(LABELS, row, strict=True) if p >= 0.5], None, dict(zip(LABELS, row, strict=True)))
        for row in table
    ]
    return predictions, [{"labels": [n for n in LABELS if generator.random() < 0.3]} for _ in table]


def values(task: Classification, scored: Scored) -> dict[str, float]:
    return {score.name: score.value for score in score_all(task.metrics(), *scored)[0]}


def direct_ece(confidence: list[float], right: list[bool]) -> float:
    """Guo et al. 2017, equations 2 to 5, bin by bin."""
    total = 0.0
    for m in range(15):
        inside = [k for k, c in enumerate(confidence) if m / 15 <= c < (m + 1) / 15 or (m == 14 and c == 1)]
        if inside:
            accuracy = sum(right[k] for k in inside) / len(inside)
            mean = sum(confidence[k] for k in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return 100 * total


def test_single_label_metrics_equal_scikit_learn(single: Scored) -> None:
    scores = values(Classification(labels=LABELS), single)
    predicted, gold = [p.value for p in single[0]], [e["label"] for e in single[1]]
    assert scores["accuracy"] == pytest.approx(100 * reference.accuracy_score(gold, predicted))
    assert scores["f1_macro"] == pytest.approx(100 * reference.f1_score(gold, predicted, average="macro"))
    assert scores["f1_micro"] == pytest.approx(100 * reference.f1_score(gold, predicted, average="micro"))
    assert scores["mcc"] == pytest.approx(100 * reference.matthews_corrcoef(gold, predicted))
    right = [a == b for a, b in zip(predicted, gold, strict=True)]
    assert scores["ece"] == pytest.approx(direct_ece([float(p.score or 0) for p in single[0]], right))


def test_multi_label_metrics_equal_scikit_learn(multi: Scored) -> None:
    scores = values(Classification(labels=LABELS, multi_label=True), multi)
    predicted = np.array([[n in p.value for n in LABELS] for p in multi[0]])
    gold = np.array([[n in e["labels"] for n in LABELS] for e in multi[1]])
    assert scores["accuracy"] == pytest.approx(100 * reference.accuracy_score(gold, predicted))
    assert scores["f1_macro"] == pytest.approx(100 * reference.f1_score(gold, predicted, average="macro"))
    assert scores["f1_micro"] == pytest.approx(100 * reference.f1_score(gold, predicted, average="micro"))
    confidence = [p for prediction in multi[0] for p in (prediction.probabilities or {}).values()]
    assert scores["ece"] == pytest.approx(direct_ece(confidence, gold.ravel().tolist()))


def test_constant_predictions_have_no_correlation() -> None:
    scored = ([Prediction("refund", 1.0)] * 3, [{"label": name} for name in LABELS[:3]])
    assert values(Classification(labels=LABELS), scored)["mcc"] == 0


def test_details_equal_scikit_learn(single: Scored, multi: Scored) -> None:
    details = Classification(labels=LABELS).details(*single)
    predicted, gold = [p.value for p in single[0]], [e["label"] for e in single[1]]
    report = reference.classification_report(gold, predicted, labels=LABELS, output_dict=True, zero_division=0)
    for name in LABELS:
        assert details["per_class"][name] == {
            "precision": pytest.approx(100 * report[name]["precision"], abs=0.01),
            "recall": pytest.approx(100 * report[name]["recall"], abs=0.01),
            "f1": pytest.approx(100 * report[name]["f1-score"], abs=0.01),
            "support": report[name]["support"],
        }
    matrix = details["confusion_matrix"]["rows_are_true"]
    assert matrix == reference.confusion_matrix(gold, predicted, labels=LABELS).tolist()
    assert "confusion_matrix" not in Classification(labels=LABELS, multi_label=True).details(*multi)
    json.dumps(details)


# --- label words --------------------------------------------------------------------------------------------------


def test_outputs_start_from_the_label_words(backbone: Any) -> None:
    task = Classification(labels=["good_film", "bad"], label_words={"bad": "terrible weather"})
    weight = task.head(backbone).linear.weight.detach()
    table = backbone.model.get_output_embeddings().weight.detach()
    ids = [
        backbone.tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" good film", " terrible weather")
    ]
    assert all(len(i) > 1 for i in ids)
    good, bad = (table[i].mean(0) for i in ids)
    np.testing.assert_allclose((weight[0] - weight[1]).numpy(), (good - bad).numpy(), atol=1e-6)
    np.testing.assert_allclose(weight.mean(0).numpy(), 0, atol=1e-6)


def test_chinese_label_words_stand_without_a_space() -> None:
    task = Classification(language="zh", labels=["refund", "complaint"], label_words={"refund": "退款"})
    assert [task.label_word(label) for label in task.labels] == ["退款", "complaint"]
    assert Classification().label_word("late_delivery") == " late delivery"


# --- prompts and options ------------------------------------------------------------------------------------------


def test_prompts_show_the_text_and_end_where_the_label_follows() -> None:
    example = {"text": "Where is my parcel?", "label": "delivery"}
    assert Classification().render(example) == ("Text: Where is my parcel?\nTopic:", " delivery")
    assert Classification(language="zh").render(example) == ("文本：Where is my parcel?\n类别：", "delivery")
    assert Classification(prompt="{text} =\\n").render(example | {"label": None}) == ("Where is my parcel? =\n", None)
    assert Classification(multi_label=True).render({"text": "x", "labels": ["a", "b"]})[1] == " a, b"


def test_braces_in_a_text_stay_as_they_are() -> None:
    assert Classification().render({"text": "{label} {0} }{", "label": None})[0] == "Text: {label} {0} }{\nTopic:"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "Review: {0}"}, r"holds \{0\}, which is no name"),
        ({"prompt": "Review: {text"}, "is no template"),
        ({"prompt": "Review:"}, r"uses no field; put \{text\} into it"),
        ({"language": "fr"}, "language='fr' has no preset prompt; there are en, zh"),
        ({"labels": ["a", "a"]}, "at least two different names"),
        ({"labels": ["a"]}, "at least two different names"),
        ({"threshold": 1.0}, "threshold=1.0 must lie between 0 and 1"),
        ({"labels": ["a", "b"], "label_words": {"c": "see"}}, r"label_words\.c: no such label; there are a, b"),
        ({"labels": ["a", "b"], "label_words": {"a": " "}}, r"label_words\.a is empty"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Classification(**options).validate()


def test_labels_come_from_training_data_unless_given() -> None:
    train = [{"text": "x", "label": name} for name in ("b", "a", "b")]
    assert Classification().prepare(train) == {"labels": ["a", "b"]}
    assert Classification(labels=["b", "a", "c"]).prepare(train) == {}
    with pytest.raises(DataError, match="at least two are needed"):
        Classification().prepare(train[:1])


def test_a_label_outside_the_set_is_refused(tokenizer: Any) -> None:
    task = Classification(labels=["billing", "delivery"])
    example = {"text": "x", "label": "delivrey"}
    with pytest.raises(
        DataError, match=r"'delivrey' is not in task\.labels: billing, delivery\. Did you mean 'delivery'"
    ):
        task.check(example)
    with pytest.raises(DataError, match="does not occur in the training data"):
        task.encode(example, tokenizer, 64)


def test_labels_are_spelled_as_they_are_read_from_data() -> None:
    task = Classification(labels=["True", "False", "1.0", "maybe"], label_words={"True": "right", "1.0": "one"})
    task.validate()
    assert task.labels == ["true", "false", "1", "maybe"]
    assert task.label_words == {"true": "right", "1": "one"}
    with pytest.raises(UserError, match="at least two different names"):
        Classification(labels=["True", "true"]).validate()


@pytest.mark.parametrize(
    ("labels", "name"), [(["False", "True"], "no"), (["False", "True"], "On"), (["no", "yes"], "false")]
)
def test_booleans_that_yaml_makes_of_yes_and_no_are_hinted_at(labels: list[str], name: str) -> None:
    task = Classification(labels=labels)
    task.validate()
    with pytest.raises(DataError, match=f"label '{name}' is not in .* YAML reads yes, no, on and off without quotes"):
        task.check({"text": "x", "label": name})


def test_a_label_with_characters_that_can_not_be_seen_is_refused_with_their_escapes() -> None:
    with pytest.raises(
        DataError, match=r"label 'billing\\u200b' is not in task.labels: billing, .*Did you mean 'billing'"
    ):
        Classification(labels=["billing", "delivery"]).check({"text": "x", "label": "billing\u200b"})


def test_a_text_that_fits_stands_in_the_prompt_as_often_as_readings_says(tokenizer: Any) -> None:
    twice, once = Classification(labels=LABELS, readings=2), Classification(labels=LABELS)
    example = {"text": "a great story about delivery"}
    assert twice.render(example)[0] == f"Text: {example['text']}\nText: {example['text']}\nTopic:"
    assert Classification(labels=LABELS, readings=2, prompt="{text} =").template == "{text}\n{text} ="
    assert Classification(labels=LABELS, readings=2, prompt="text:").template == "text:"
    single_reading = once.encode(example, tokenizer, 200).ids
    assert twice.encode(example, tokenizer, 200).ids != single_reading
    encoded = twice.encode(example, tokenizer, len(single_reading) + 3)
    assert (encoded.ids, encoded.truncated) == (single_reading, 0)  # rather once and whole than twice and cut
    with pytest.raises(UserError, match=r"task\.readings=0"):
        Classification(labels=LABELS, readings=0).validate()


def test_a_pair_of_texts_is_read_again_as_a_pair(tokenizer: Any) -> None:
    @dataclass
    class Pair(Classification):
        PROMPTS: ClassVar[dict[str, str]] = {"en": "A: {first}\nB: {second}\nSame:"}

        def fields(self) -> list[Field]:
            return [Field("first", truncate=True), Field("second"), Field("label", Kind.LABEL, target=True)]

    example = {"first": "a story", "second": "a tale"}
    assert Pair(labels=LABELS).render(example)[0] == "A: a story\nB: a tale\nSame:"
    assert Pair(labels=LABELS, readings=2).render(example)[0] == "A: a story\nB: a tale\n" * 2 + "Same:"
    with pytest.raises(UserError, match=r"Pair.fields\(\) must keep Classification's target 'labels', got label"):
        Pair(labels=LABELS, multi_label=True).validate()


def test_a_long_text_is_cut_and_the_prompt_behind_it_is_not(tokenizer: Any) -> None:
    task = Classification(labels=["a", "b"])
    example = {"text": "the film is good " * 50, "label": "b"}
    encoded = task.encode(example, tokenizer, 40)
    untruncated = task.encode(example, tokenizer, 1000)
    assert len(encoded.ids) <= 40
    assert encoded.truncated == len(untruncated.ids) - 40
    assert untruncated.truncated == 0
    assert tokenizer.decode(encoded.ids).endswith("\nTopic:")
    with pytest.raises(DataError, match=r"the prompt alone needs \d+ tokens and 2 are left.* shorten the prompt$"):
        task.encode(example, tokenizer, 2)
    assert encoded.label == 1


def test_labels_are_predicted_from_the_threshold_on() -> None:
    task = Classification(labels=["a", "b", "c"], multi_label=True, threshold=0.3)
    assert task.prediction({}, [[0.3, 0.29, 0.9]]).value == ["a", "c"]
    assert task.encode({"text": "x", "labels": ["c"]}, TwoTokens(), 9).label == [0.0, 0.0, 1.0]


def test_the_best_threshold_scores_as_high_as_an_exhaustive_search() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((60, 5)) < 0.2
    probabilities = np.round(np.clip(0.3 * truth + 0.7 * generator.random((60, 5)), 0, 1), 1)  # with ties
    best = best_threshold(probabilities.tolist(), truth.tolist())

    def score(threshold: float) -> float:
        return float(reference.f1_score(truth, probabilities >= threshold, average="micro", zero_division=0))

    assert score(best) == max(score(value) for value in np.unique(probabilities))
    assert score(best) > score(0.5)


@pytest.mark.parametrize(
    ("probabilities", "truth", "low", "high"),
    [
        ([[0.9, 0.2]], [[0.0, 0.0]], 0.5, 0.5),  # no label is true
        ([[0.9, 0.2]], [[1.0, 0.0]], 0.2, 0.9),
        ([[0.9, 0.2]], [[1.0, 1.0]], 0.0, 0.2),
        ([[0.4, 0.4]], [[1.0, 0.0]], 0.0, 0.4),  # no threshold lies between equal probabilities
    ],
)
def test_the_best_threshold_lies_between_probabilities(probabilities: Any, truth: Any, low: float, high: float) -> None:
    assert low <= best_threshold(probabilities, truth) <= high
    assert 0 < best_threshold(probabilities, truth) < 1


class TwoTokens:
    """A tokenizer for which every text is two tokens."""

    eos_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, 2]}


def test_the_sample_is_balanced_and_a_fifth_of_it_is_chinese(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(Classification())
    assert_fit_for_use(rows)
    for split in rows.values():
        counts = Counter(example["label"] for example in split)
        assert max(counts.values()) <= 1.1 * min(counts.values())
        chinese = [e for e in split if any("\u4e00" <= c <= "\u9fff" for c in e["text"])]
        assert len(chinese) >= len(split) / 5
        assert len({e["label"] for e in chinese}) == len(counts)
