"""Explanations of every kind of prediction by every method, on tiny random runs and both engines."""

import math

import numpy as np
import pytest
import torch
from gptask import GenerationOptions, UserError
from gptask.analysis.explain.explainer import Explainer
from gptask.config.engine import Fast, Reference
from gptask.config.explain_options import ExplainMethod
from gptask.config.schemas import Data, Lora
from gptask.data.rows import Row
from gptask.runs.predictor import InputRow, Predictor
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

LORA = Lora(rank=2, top=1.0)
SENTIMENT = Sentiment(labels=["bad", "fair", "good"])
TAGGING = TokenTagging(types=["PER", "LOC"], plain=False)
SPAN = QuestionAnswering(answer=AnswerForm.span, stride=8)
TRANSLATION = Translation(generation=GenerationOptions(max_new_tokens=6))
CHAT = TextGeneration(raw=True, generation=GenerationOptions(max_new_tokens=6))
TEXT = {"text": "is this film good or bad"}
INPUTS = {
    "class": (SENTIMENT, TEXT),
    "labels": (Classification(labels=["fox", "dog", "film"], multi_label=True), TEXT),
    "tags": (TAGGING, {"tokens": ["the", "lazy", "dog", "jumps"], "predicate": [3]}),
    "span": (SPAN, {"context": "the quick brown fox jumps over the dog.", "question": "is it good?"}),
    "text": (TRANSLATION, {"source": "the quick fox"}),
    "chat": (CHAT, {"messages": [{"role": "user", "content": "is this good?"}]}),
}


@pytest.fixture(scope="module")
def predictor_of(random_run):
    """``predictor_of(task, engine)``: the predictor of a tiny run with adapters in all layers."""
    predictors = {}

    def make(task, engine=None, max_tokens=96):
        key = id(task), type(engine), max_tokens
        if key not in predictors:
            run = random_run(task, "llama", LORA)
            run.backbone.use_engine(engine or Fast())
            predictors[key] = Predictor(run.task, run.backbone, run.head, Data(max_tokens=max_tokens))
        return predictors[key]

    return make


def explain(predictor, example, reference=None, **options):
    explainer = Explainer(predictor, **options)
    explainer.check()
    return explainer.explain(InputRow(Row(1, example), dict(example), "rows:1"), reference)


# --- every kind of prediction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ExplainMethod)
@pytest.mark.parametrize("kind", INPUTS)
def test_each_word_has_a_number(kind, method, predictor_of):
    task, example = INPUTS[kind]
    steps = 2 if method is ExplainMethod.ig else None
    explanation = explain(predictor_of(task), example, method=method, steps=steps, places=3)
    assert explanation.maps
    for entry in explanation.maps:
        assert len(entry.attributions) == len(explanation.words) == len(entry.without)
        assert all(map(math.isfinite, entry.attributions))
        assert any(entry.attributions)
        assert 0 < entry.probability <= 1
        assert entry.faithfulness is not None
        assert (entry.steps, entry.completeness_error is None) == (steps, steps is None)
    for name, text in explanation.fields.items():
        assert all(text[w.start : w.end] == w.text for w in explanation.words if w.field == name)


def test_the_targets_of_each_kind(predictor_of):
    found = {
        kind: explain(predictor_of(task), example, method=ExplainMethod.occlusion, places=3)
        for kind, (task, example) in INPUTS.items()
    }
    of_class = found["class"]
    assert of_class.maps[0].target == of_class.prediction == max(of_class.probabilities, key=of_class.probabilities.get)
    assert {entry.target for entry in of_class.maps} == set(SENTIMENT.labels)
    assert [entry.place for entry in found["tags"].maps] == sorted(entry.place for entry in found["tags"].maps)
    assert {entry.target for entry in found["tags"].maps} <= {*TAGGING.tags} - {"O"}
    assert [entry.target for entry in found["span"].maps] == ["start", "end"]
    first, last = (found["span"].words[entry.place] for entry in found["span"].maps)
    start = found["span"].fields["context"].index(found["span"].prediction)
    assert first.start <= start < first.end
    assert last.start < start + len(found["span"].prediction) <= last.end
    for kind in ("text", "chat"):
        first, *others = found[kind].maps
        assert first.target == found[kind].prediction
        assert [found[kind].written[entry.place].text for entry in others] == [entry.target for entry in others]


def test_a_deleted_word_is_scored_as_a_user_would_see_it(predictor_of):
    predictor = predictor_of(SENTIMENT)
    explanation = explain(predictor, TEXT, method=ExplainMethod.occlusion)
    (without,) = predictor.predict([{"text": "is this film or bad"}])
    number = [word.text for word in explanation.words].index("good")
    for entry in explanation.maps:
        assert entry.probability == pytest.approx(explanation.probabilities[entry.target], abs=1e-4)
        assert entry.without[number] == pytest.approx(without.probabilities[entry.target], abs=1e-4)


def test_a_tagged_word_stays_while_others_go(predictor_of):
    example = {"tokens": ["the", "lazy", "dog", "jumps"]}
    (entry, *_) = explain(predictor_of(TAGGING), example, method=ExplainMethod.occlusion).maps
    assert [value is None for value in entry.without] == [number == entry.place for number in range(4)]
    assert entry.attributions[entry.place] == 0


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class", "tags", "span", "text"])
def test_both_engines_integrate_the_same_gradients(kind, predictor_of):
    task, example = INPUTS[kind]
    explanations = [explain(predictor_of(task, engine), example, steps=4, places=2) for engine in (Fast(), Reference())]
    for fast, reference in zip(*(explanation.maps for explanation in explanations), strict=True):
        assert fast.target == reference.target
        np.testing.assert_allclose(fast.attributions, reference.attributions, rtol=1e-3, atol=1e-4)


def test_auto_doubles_the_steps_until_little_is_missing(random_run):
    run = random_run(SENTIMENT, "llama", LORA, seed=1)
    run.backbone.model.get_input_embeddings().weight.data += 1.0  # no path comes near zero, where norms are steep
    predictor = Predictor(run.task, run.backbone, run.head, Data(max_tokens=96))
    options = {"other_classes": 0}
    (auto,) = explain(predictor, TEXT, **options).maps
    assert auto.completeness_error < 0.05
    assert auto.steps in (16, 32, 64, 128, 256)
    (few,) = explain(predictor, TEXT, steps=2, **options).maps
    assert few.steps == 2
    assert few.completeness_error > auto.completeness_error


def test_the_weights_and_their_flags_stay(predictor_of):
    predictor = predictor_of(SENTIMENT)
    flags = {name: parameter.requires_grad for name, parameter in predictor.backbone.named_parameters()}
    before = list(predictor.predict([TEXT]))
    explain(predictor, TEXT, steps=2)
    explain(predictor, TEXT, method=ExplainMethod.attention)
    assert {name: p.requires_grad for name, p in predictor.backbone.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in predictor.backbone.parameters())
    assert list(predictor.predict([TEXT])) == before


@pytest.mark.parametrize("engine", [Fast(), Reference()], ids=["fast", "reference"])
def test_a_long_text_is_computed_layer_by_layer_with_the_same_result(engine, predictor_of, monkeypatch):
    from gptask.analysis.explain import integrated_gradients

    predictor = predictor_of(SENTIMENT, engine)
    short = explain(predictor, TEXT, steps=4)
    kept = []
    pack = torch.autograd.graph.saved_tensors_hooks
    monkeypatch.setattr(integrated_gradients, "PASS_TOKENS", 4)
    with pack(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        long = explain(predictor, TEXT, steps=4)
    for one, other in zip(short.maps, long.maps, strict=True):
        np.testing.assert_allclose(one.attributions, other.attributions, rtol=1e-3, atol=1e-4)
    assert not any(layer.training for layer in predictor.backbone.layers)
    assert not any(getattr(layer, "gradient_checkpointing", False) for layer in predictor.backbone.layers)


# --- comparisons, limits, errors --------------------------------------------------------------------------------------


def test_against_a_class(predictor_of):
    predictor = predictor_of(SENTIMENT)
    both = explain(predictor, TEXT, method=ExplainMethod.occlusion)
    predicted, other = both.maps[0], both.maps[2]
    (entry,) = explain(predictor, TEXT, method=ExplainMethod.occlusion, against=other.target).maps
    assert (entry.target, entry.against) == (predicted.target, other.target)
    # the difference of log-probabilities, which loses what both classes lose
    whole = math.log(predicted.probability / other.probability)
    expected = [whole - math.log(p / q) for p, q in zip(predicted.without, other.without, strict=True)]
    np.testing.assert_allclose(entry.attributions, expected, atol=1e-3)
    (reversed_entry,) = explain(predictor, TEXT, method=ExplainMethod.occlusion, against=predicted.target).maps
    assert (reversed_entry.target, reversed_entry.against) == (both.maps[1].target, predicted.target)


def test_against_an_unknown_class_or_a_text_is_refused(predictor_of):
    with pytest.raises(UserError, match=r"against=goood is none of the run's classes: bad, fair, good\..*good"):
        explain(predictor_of(SENTIMENT), TEXT, against="goood")
    for kind in ("span", "text"):
        task, example = INPUTS[kind]
        with pytest.raises(UserError, match="predicts neither"):
            explain(predictor_of(task), example, against="good")


def test_the_true_class_is_explained_too(predictor_of):
    predictor = predictor_of(Sentiment(labels=["a", "b", "c", "d", "e", "f"]))
    plain = explain(predictor, TEXT, method=ExplainMethod.occlusion)
    unlikely = min(plain.probabilities, key=plain.probabilities.get)
    assert unlikely not in [entry.target for entry in plain.maps]
    explanation = explain(predictor, TEXT, reference=unlikely, method=ExplainMethod.occlusion)
    assert [entry.target for entry in explanation.maps][:2] == [explanation.prediction, unlikely]


def test_words_that_were_cut_off_have_no_number(predictor_of):
    example = {"text": "the quick brown fox jumps over the lazy dog " * 4 + "good"}
    explanation = explain(predictor_of(SENTIMENT, max_tokens=40), example, method=ExplainMethod.occlusion)
    (first, *_) = explanation.maps
    cut = [number for number, value in enumerate(first.attributions) if value is None]
    assert cut
    assert cut == list(range(cut[0], len(explanation.words)))
    assert all(first.without[number] is None for number in cut)


def test_a_head_without_scores_is_named(predictor_of, monkeypatch):
    predictor = predictor_of(SENTIMENT)
    monkeypatch.setattr(type(predictor.head), "scores", lambda head, hidden, batch: None)
    monkeypatch.setattr(type(predictor.head), "predict", lambda head, hidden, batch: [[0.2, 0.3, 0.5]])
    with pytest.raises(UserError, match=r"ClassificationHead.*Sentiment.*has no scores.*author adds.*scores\(hidden"):
        explain(predictor, TEXT)


@pytest.mark.parametrize("kind", INPUTS)
def test_the_attention_between_the_words_of_each_kind(kind, predictor_of):
    task, example = INPUTS[kind]
    explanation = explain(predictor_of(task), example, method=ExplainMethod.attention, places=1, with_attention=True)
    assert explanation.attention.weights.shape == (2, 4, len(explanation.words), len(explanation.words))


def test_the_attention_of_every_head(predictor_of):
    explanation = explain(predictor_of(SENTIMENT), TEXT, method=ExplainMethod.occlusion, with_attention=True)
    weights = explanation.attention.weights
    assert weights.shape == (2, 4, 6, 6)
    assert weights.dtype == np.uint8
    assert not np.triu(weights, 1).any()  # no word reads a later one
    assert weights.any()
