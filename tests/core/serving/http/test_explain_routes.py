"""Explanations over HTTP are those of the run in Python; others are answered while one is computed."""

import threading
import time
from itertools import pairwise

import pytest
import torch
from gptask import Head
from gptask.analysis.explain.explainer import Explainer
from gptask.analysis.explain.explanation import AttentionMaps
from gptask.config.explain_options import ExplainMethod
from gptask.model.engine.fast import FastEngine
from gptask.model.engine.private import attention_implementation
from gptask.serving.http import explain_routes as module
from gptask.serving.http.predicting import input_rows
from gptask.serving.models.served_run import ServedRun
from gptask_tasks.sentiment import Sentiment

TEXT = "a good film is not bad"
KEYS = {"attributions", "without", "probability"}


def explain(server, run, example, **fields):
    return server.http.post("/v1/explain", json={"model": run, "example": example} | fields)


def expected(server, run, example, method="ig", **options):
    """The explanation by the run's own predictor."""
    model = server.state.registry.get(run)
    (row,) = input_rows(model, [example], str)
    return Explainer(
        model.predictor, ExplainMethod(method), steps=module.STEPS, places=module.PLACES, **options
    ).explain(row)


@pytest.mark.parametrize(
    ("run", "example"),
    [
        ("sentiment", TEXT),
        ("topics", {"text": "where is my parcel?", "id": "b"}),
        ("several", {"text": "it is very good"}),
        ("tags", {"tokens": ["the", "lazy", "dog"]}),
        ("spans", {"context": "the quick brown fox jumps", "question": "who jumps?"}),
        ("french", {"source": "the lazy dog"}),
    ],
)
def test_an_explanation_is_that_of_the_run(server, run, example):
    answer = explain(server, run, example)
    assert answer.status_code == 200, answer.text
    values, explanation = answer.json(), expected(server, run, example)
    assert values["method"] == "ig"
    assert values["truncated"] == 0
    assert [word["text"] for word in values["words"]] == [word.text for word in explanation.words]
    assert [entry["target"] for entry in values["maps"]] == [entry.target for entry in explanation.maps]
    for entry, map_ in zip(values["maps"], explanation.maps, strict=True):
        assert entry["attributions"] == pytest.approx(map_.attributions, abs=2e-3)
        assert entry["probability"] == pytest.approx(map_.probability, abs=1e-4)
    assert values.get("id", "b") in ("b", "1")


def test_methods_and_a_rejected_class(server):
    for method in ("occlusion", "attention"):
        values = explain(server, "sentiment", TEXT, method=method).json()
        (first, *_), (map_, *_) = values["maps"], expected(server, "sentiment", TEXT, method).maps
        assert first["attributions"] == pytest.approx(map_.attributions, abs=2e-3)
        assert ("attention" in values) == (method == "attention")
    words = len(TEXT.split())
    assert AttentionMaps.from_json(values["attention"]).weights.shape[2:] == (words, words)
    (against,) = explain(server, "topics", TEXT, against="delivery").json()["maps"]
    assert against["against"] == "delivery"
    assert explain(server, "topics", TEXT, steps=16).json()["maps"][0]["steps"] == 16


def test_mistakes_are_named(server):
    for fields, status, part in [
        ({"model": "nothing"}, 404, "nothing"),
        ({"method": "magic"}, 400, "expected one of ig, occlusion, attention"),
        ({"steps": 1000}, 400, "steps"),
        ({"steps": 16, "method": "occlusion"}, 400, "steps is for the method ig"),
        ({"colour": "red"}, 400, "colour is not supported here"),
        ({"against": "purple"}, 422, "against=purple is none of the run's classes"),
        ({"example": {"txt": "a"}}, 422, "example.txt: unknown field"),
        ({"example": ""}, 422, "example"),
        ({"example": [TEXT]}, 422, "example"),
        ({"example": "good " * 150}, 422, "150 words in 1"),
        ({"model": "lm"}, 422, "has no scores"),
    ]:
        answer = server.http.post("/v1/explain", json={"model": "topics", "example": TEXT} | fields)
        assert answer.status_code == status, (fields, answer.text)
        assert part in answer.json()["error"]["message"], answer.text
    bare = next(name for name, model in server.state.registry.models.items() if not isinstance(model, ServedRun))
    assert "without a task" in explain(server, bare, TEXT).json()["error"]["message"]


def test_a_long_text_that_is_written_is_refused_before_it_is_explained(server, monkeypatch):
    monkeypatch.setattr(module, "PASS_TOKENS", 10)
    answer = explain(server, "french", "the lazy dog")
    assert answer.status_code == 422
    assert "what is written behind it have" in answer.json()["error"]["message"]


def test_the_token_is_asked_for(with_options):
    with with_options(token="secret") as server:
        assert explain(server, "topics", TEXT).status_code == 401


def test_models_say_what_they_explain(server):
    explains = {entry["id"]: entry["explains"] for entry in server.http.get("/v1/models").json()["data"]}
    assert explains["sentiment"] == explains["french"] == ["ig", "occlusion", "attention"]
    assert explains["lm"] == []


def test_the_description_names_the_route(server):
    operation = server.http.get("/openapi.json").json()["paths"]["/v1/explain"]["post"]
    assert "maps" in operation["responses"]["200"]["content"]["application/json"]["schema"]["properties"]


@pytest.mark.parametrize("method", ["ig", "attention"])
def test_others_are_answered_between_two_passes_and_never_beside_one(server, monkeypatch, method):
    model, passes, alone, hidden = server.state.registry.get("topics"), [], threading.Lock(), FastEngine.hidden_by
    usual, usual_answer = attention_implementation(model.backbone.model), server.predict("topics", TEXT).json()

    def watched(engine, *args):
        assert alone.acquire(blocking=False), "two passes at a time"
        try:
            is_explained = threading.current_thread().name.startswith("explainer")
            passes.append((is_explained, attention_implementation(model.backbone.model)))
            while is_explained and not server.state.batcher.waiting:
                time.sleep(0.002)  # until another request waits for the end of this pass
            return hidden(engine, *args)
        finally:
            alone.release()

    monkeypatch.setattr(FastEngine, "hidden_by", watched)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(explain(server, "sentiment", TEXT, method=method)))
    thread.start()
    while thread.is_alive():
        assert server.predict("topics", TEXT).json() == usual_answer
    assert answers[0].status_code == 200, answers[0].text
    assert {implementation for is_explained, implementation in passes if not is_explained} == {usual}
    in_turns = [is_explained for is_explained, implementation in passes if implementation == usual]
    assert sum(in_turns) > 3
    assert (True, True) not in pairwise(in_turns), "the other request waited for a second pass"


def test_a_time_limit_ends_an_explanation(with_options, monkeypatch):
    with with_options(timeout_s=0.5) as server:
        hidden, calls = FastEngine.hidden_by, []

        def slow(engine, *args):
            if threading.current_thread().name.startswith("explainer"):
                calls.append(1)
                threading.Event().wait(0.2)
            return hidden(engine, *args)

        monkeypatch.setattr(FastEngine, "hidden_by", slow)
        answer = explain(server, "sentiment", TEXT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
        count = len(calls)
        monkeypatch.undo()
        assert count < 10
        assert server.predict("topics", TEXT).status_code == 200


class FailingHead(Head):
    """Two classes, until it is asked for scores."""

    def __init__(self, head):
        super().__init__(head.backbone)
        self.head = head

    def loss(self, hidden, batch):
        return self.head.loss(hidden, batch)

    def predict(self, hidden, batch):
        return self.head.predict(hidden, batch)

    def scores(self, hidden, batch):
        raise ValueError("secret")


class Failing(Sentiment):
    """A task whose head fails."""

    def head(self, backbone):
        return FailingHead(super().head(backbone))


def test_a_plugin_that_fails_is_named_and_the_server_goes_on(with_run):
    with with_run(Failing(labels=["negative", "positive"])) as server:
        answer = explain(server, "plugin", TEXT)
        assert answer.status_code == 500
        assert "failed in scores()" in answer.json()["error"]["message"]
        assert "secret" not in answer.text
        assert explain(server, "topics", TEXT).status_code == 200
        assert not torch.is_inference_mode_enabled()
