"""Errors in OpenAI's format, plugins that fail, and defects: one request is answered, and nothing is told."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from gptask import GenerationHead, Prediction, UserError, option
from gptask.serving.http import predict_routes
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.summarization import Summarization

from tests.core.serving.conftest import RunningServer


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "there is no GET /nothing"),
        ("GET", "/docs", 404, "there is no GET /docs"),
        ("GET", "/redoc", 404, "there is no"),
        ("POST", "/v1/models/", 404, "there is no"),
        ("GET", "/v1/predict/sentiment", 405, "allowed: POST"),
        ("DELETE", "/v1/models", 405, "allowed: GET"),
        ("GET", "/v1/models/nothing", 404, "no model 'nothing'"),
    ],
)
def test_paths_and_methods(method: str, path: str, status: int, message: str, server: RunningServer) -> None:
    response = server.http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code", "request_id"}
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/v1/embeddings", {"model": "lm", "input": "a", "dimensions": 8}, "dimensions", "not supported"),
        ("/v1/embeddings", {"input": "a"}, "model", "model is missing"),
        ("/v1/embeddings", {"model": 3, "input": "a"}, "model", "valid string"),
        ("/v1/embeddings", {"model": "lm", "input": "a", "encoding_format": "int8"}, "encoding_format", "'float'"),
        ("/v1/embeddings", [], None, "the body"),
        ("/classify", {"model": "topics", "input": "a", "priority": 1}, "priority", "not supported"),
        ("/pooling", {"model": "lm", "input": "a", "pooling": "mean"}, "pooling", "task=embed"),
    ],
)
def test_bad_fields_are_named(path: str, body: Any, param: str | None, message: str, server: RunningServer) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert message in response.json()["error"]["message"]


@dataclass
class Failing(Sentiment):
    """Fails in one of its hooks."""

    where: str = option("", "name of the hook")

    def encode(self, example: Any, tokenizer: Any, max_tokens: int) -> Any:
        if self.where == "encode" and "fail" in example["text"]:
            raise SystemExit(example["text"])
        return super().encode(example, tokenizer, max_tokens)

    def clean(self, examples: Any, train: bool, counts: Any) -> Any:
        if self.where == "clean":
            raise UserError("texts are refused today")
        return examples

    def prediction(self, example: Any, outputs: Any) -> Prediction:
        if self.where == "prediction" and "fail" in example["text"]:
            raise KeyError(example["text"])
        if self.where == "score" and "fail" in example["text"]:
            return Prediction("a", score="high")  # type: ignore[arg-type]
        return Prediction(self.where, score=float("nan"), extra={"odd": {1}, "text": "\ud800"})


@pytest.mark.parametrize("where", ["encode", "prediction"])
def test_a_plugin_that_fails_fails_one_request(
    where: str, with_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with with_run(Failing(labels=["a", "b"], where=where)) as server:
        response = server.predict("plugin", "fail secret")
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (500, "plugin_error")
        assert f"failed in {where}()" in error["message"]
        assert "failing" in error["message"]
        (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
        assert f"in {where}" in record.getMessage()
        for text in (response.text, record.getMessage()):
            assert "secret" not in text
        assert "Traceback" not in response.text
        lines = b'"good"\n"fail"\n"good"'
        answers = server.http.post("/v1/predict/plugin", content=lines, headers={"Content-Type": "application/jsonl"})
        assert [b"plugin_error" in line for line in answers.content.splitlines()] == [False, True, False]
        (answer,) = server.predict("plugin", ["good"]).json()
        assert (answer["prediction"], answer["score"], answer["extra"]) == (
            where,
            None,
            {"odd": "{1}", "text": "\\ud800"},
        )


def test_a_prediction_of_another_form_and_a_refusal(with_run: Callable[..., Any]) -> None:
    with with_run(Failing(labels=["a", "b"], where="score")) as server:
        assert server.predict("plugin", "fail").status_code == 500
        assert server.predict("plugin", "good").status_code == 200
        server.state.registry.get("plugin").run.task.where = "clean"
        response = server.predict("plugin", "good")
        assert (response.status_code, response.json()["error"]["message"]) == (422, "texts are refused today")


class ScoringWriter(GenerationHead):
    """Writes a text, and reads states: what only runs alone between two steps."""

    def predict(self, hidden: None, batch: Any) -> list[Any]:
        texts = super().predict(hidden, batch)
        states = self.backbone.hidden(batch.input_ids, batch.lengths)
        for text, state in zip(texts, states, strict=True):
            text.score = float(state[0].mean())
        return texts


class AddingWriter(GenerationHead):
    """Reads states for the texts that were written together with others."""

    def outputs(self, texts: Any, batch: Any) -> list[Any]:
        if any("fail" in self.backbone.tokenizer.decode(ids) for ids in batch.prompts()):
            raise ZeroDivisionError("secret")
        states = self.backbone.hidden(batch.input_ids, batch.lengths)
        for text, state in zip(texts, states, strict=True):
            text.score = float(state[0].mean())
        return list(texts)


@dataclass
class WithHead(Summarization):
    """Has another head."""

    kind: str = option("", "which")

    def head(self, backbone: Any) -> Any:
        return {"alone": ScoringWriter, "together": AddingWriter}[self.kind](backbone, self.generation)


@pytest.mark.parametrize("kind", ["alone", "together"])
def test_a_plugins_head_that_writes_and_scores(kind: str, with_run: Callable[..., Any]) -> None:
    task = WithHead(kind=kind)
    task.generation.max_new_tokens = 4
    with with_run(task) as server:
        run = server.state.registry.get("plugin").run
        assert run.head.decodes
        expected = list(run.predict(["the fox", "the dog"]))
        for answer, prediction in zip(server.predict("plugin", ["the fox", "the dog"]).json(), expected, strict=True):
            assert answer["prediction"] == prediction.value
            assert answer["score"] == pytest.approx(prediction.score, abs=1e-4)
        if kind == "together":
            response = server.predict("plugin", "fail")
            assert "failed in outputs()" in response.json()["error"]["message"]
            assert "secret" not in response.text


def test_a_head_that_fails_fails_one_request(with_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with with_run(Failing(labels=["a", "b"])) as server:
        head = server.state.registry.get("plugin").run.head

        def predict(hidden: Any, batch: Any) -> Any:
            raise ZeroDivisionError("secret")

        with monkeypatch.context() as patch:
            patch.setattr(head, "predict", predict)
            response = server.predict("plugin", "good")
        assert response.status_code == 500
        assert "secret" not in response.text
        assert server.predict("plugin", "good").status_code == 200


def test_a_defect_is_logged_once_and_not_told(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(predict_routes, "predict_examples", broken)
    response = server.predict("sentiment", "good")
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (500, "server_error")
    assert error["request_id"] == response.headers["X-Request-Id"]
    assert "secret" not in response.text
    (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
    assert error["request_id"] in record.getMessage()
    assert "ZeroDivisionError" in record.getMessage()
