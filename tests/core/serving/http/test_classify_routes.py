"""Classification in vLLM's shape."""

from typing import Any

import pytest

from tests.core.serving.conftest import RunningServer


@pytest.mark.parametrize("name", ["topics", "several", "sentiment"])
def test_classes_are_those_of_the_run(name: str, server: RunningServer) -> None:
    texts = ["a good film", "where is my parcel?"]
    answer = server.http.post("/classify", json={"model": name, "input": texts}).json()
    predictions = server.predict(name, texts).json()
    assert (answer["object"], answer["model"]) == ("list", name)
    for index, (entry, prediction) in enumerate(zip(answer["data"], predictions, strict=True)):
        probabilities = prediction["probabilities"]
        assert entry["index"] == index
        assert entry["num_classes"] == len(probabilities)
        assert entry["probs"] == pytest.approx(list(probabilities.values()), abs=1e-4)
        assert entry["label"] == max(probabilities, key=probabilities.__getitem__)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 10
    single = server.http.post("/classify", json={"model": name, "input": texts[0]}).json()
    assert single["data"][0]["label"] == answer["data"][0]["label"]


@pytest.mark.parametrize(
    ("name", "value", "status", "message"),
    [
        ("french", "a", 400, "it writes texts"),
        ("spans", "a", 400, "it reads context and question"),
        ("lm", "a", 400, "a probability to each label"),
        ("tags", "a", 400, "a probability to each label"),
        ("topics", [], 400, "expected 1 to"),
        ("topics", [1, 2], 400, "input[0] must be a text"),
        ("topics", ["a", ""], 422, "input[1].text"),
        ("topics", "", 422, "input.text"),
        ("nothing", "a", 404, "no model"),
    ],
)
def test_what_has_no_classes_is_refused(
    name: str, value: Any, status: int, message: str, server: RunningServer
) -> None:
    response = server.http.post("/classify", json={"model": name, "input": value})
    assert response.status_code == status, response.text
    assert message in response.json()["error"]["message"]
