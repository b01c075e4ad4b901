"""Predictions over HTTP are those of the run in Python; what is wrong with an example is said with its place."""

import json
from typing import Any

import pytest
from gptask.runs.prediction_lines import as_json
from gptask.runs.predictions_file import prediction_fields
from gptask.serving.http import predict_routes

from tests.core.serving.conftest import EXAMPLES, FIXED, RunningServer


def assert_close(got: Any, expected: Any) -> None:
    """Texts are equal, numbers to 1e-4."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            assert_close(got[name], expected[name])
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for pair in zip(got, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)
    else:
        assert got == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_answers_equal_those_of_the_run_in_python(name: str, server: RunningServer, served_runs: Any) -> None:
    examples = EXAMPLES[name]
    expected = [json.loads(as_json(prediction_fields(p))) for p in served_runs[name].predict(examples)]
    response = server.predict(name, examples)
    assert response.status_code == 200, response.text
    answers = response.json()
    for answer, example, fields in zip(answers, examples, expected, strict=True):
        ids = {"id": example["id"]} if isinstance(example, dict) and "id" in example else {}
        assert_close({k: v for k, v in answer.items() if k != "truncated"}, ids | fields)
    single = server.predict(name, examples[0]).json()
    assert_close(single, answers[0])
    lines = b"\n".join(json.dumps(example).encode() for example in examples)
    streamed = server.http.post(f"/v1/predict/{name}", content=lines, headers={"Content-Type": "application/x-ndjson"})
    for line, answer in zip(streamed.text.splitlines(), answers, strict=True):
        assert_close(json.loads(line), answer)


def test_tokens_that_are_cut_off_are_counted(server: RunningServer) -> None:
    answers = server.predict("topics", EXAMPLES["topics"]).json()
    assert answers[0]["truncated"] == answers[2]["truncated"] == 0
    assert answers[1]["truncated"] > 200
    assert all(answer["truncated"] == 0 for answer in server.predict("tags", EXAMPLES["tags"]).json())  # windows


@pytest.mark.parametrize(
    ("name", "example", "param", "message"),
    [
        ("sentiment", {"text": ""}, "text", "is empty"),
        ("sentiment", {"text": " \n"}, "text", "is empty"),
        ("sentiment", "", "text", "is empty"),
        ("sentiment", {"text": None}, "text", "is null"),
        ("sentiment", {"text": {"a": 1}}, "text", "must be a text"),
        ("sentiment", {}, "text", "no 'text'"),
        ("sentiment", {"txt": "good"}, "txt", "Did you mean 'text'?"),
        ("sentiment", {"text": "good", "label": "positive"}, "label", "unknown field; the task reads text"),
        ("sentiment", {"text": "good", "id": [1]}, "id", "a text or a whole number"),
        ("sentiment", None, None, "expected a text"),
        ("sentiment", 3, None, "expected a text"),
        ("sentiment", [{"text": "good"}, {"text": ""}], "examples[1].text", "is empty"),
        ("sentiment", [{"text": "good"}, ["bad"]], "examples[1]", "expected a text"),
        ("qa", "who?", None, "can't be split into 'context', 'question'"),
        ("qa", {"context": "the fox"}, "question", "no 'question'"),
        ("tags", {"tokens": ["a", ""]}, "tokens", "token 2 of 2 is empty"),
        ("tags", {"tokens": ["a"], "predicate": [5]}, "predicate", "is no position"),
        ("tags", {"tokens": ["a"], "predicate": "x"}, "predicate", "whole numbers"),
        ("questions", {"context": "the fox", "answers": []}, "answers", "is empty"),
        ("chat", {"messages": [{"role": "robot", "content": "hi"}]}, None, "the role 'robot'"),
        ("chat", {"nothing": 1}, None, "hold no conversation"),
    ],
)
def test_a_bad_example_is_refused_with_its_place(
    name: str, example: Any, param: str | None, message: str, server: RunningServer
) -> None:
    response = server.predict(name, example)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, param), error
    assert message in error["message"]
    assert error["message"].startswith(f"{param}: " if param else "")


def test_values_are_read_as_gptask_predict_reads_them(server: RunningServer) -> None:
    numbers = server.predict("sentiment", [{"text": 5}, {"text": "5"}, {"text": True}, {"text": "true"}]).json()
    assert numbers[0] == numbers[1]
    assert numbers[2] == numbers[3]


def test_the_name_of_a_file_is_a_text(server: RunningServer) -> None:
    assert server.predict("sentiment", "/etc/passwd").status_code == 200


def test_an_empty_list_has_no_answers(server: RunningServer) -> None:
    assert server.predict("sentiment", []).json() == []


def test_a_list_is_bounded(server: RunningServer) -> None:
    response = server.predict("sentiment", ["a"] * (predict_routes.MAX_EXAMPLES + 1))
    assert response.status_code == 422
    assert f"at most {predict_routes.MAX_EXAMPLES}" in response.json()["error"]["message"]


def test_an_unknown_run_is_404_with_the_nearest_name(server: RunningServer) -> None:
    response = server.predict("sentimnt", "good")
    assert response.status_code == 404
    assert "Did you mean 'sentiment'?" in response.json()["error"]["message"]


def test_columns_of_the_training_data_are_read(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    options = server.state.registry.get("sentiment").predictor.options
    monkeypatch.setattr(options, "columns", {"text": "review"})
    assert (
        server.predict("sentiment", {"review": "good"}).json() == server.predict("sentiment", {"text": "good"}).json()
    )
    error = server.predict("sentiment", {"review": "good", "text": "bad"}).json()["error"]
    assert "may be in 'text', 'review'" in error["message"]


@pytest.mark.parametrize("name", FIXED)
def test_every_single_field_is_named_in_errors(name: str, server: RunningServer) -> None:
    assert server.predict(name, [""]).json()["error"]["param"] == f"examples[0].{FIXED[name]}"
