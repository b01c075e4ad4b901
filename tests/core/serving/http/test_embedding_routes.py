"""Embeddings and pooling: states of the backbone with the run's adapter, in the shapes of OpenAI and vLLM."""

import base64
from typing import Any

import numpy as np
import openai
import pytest
import torch

from tests.core.serving.conftest import RunningServer


def states_of(run: Any, text: str) -> np.ndarray:
    """The states (T, C) of a text by the run in Python."""
    backbone = run.backbone
    ids = backbone.tokenizer(text)["input_ids"]
    with torch.inference_mode():
        return backbone.hidden(torch.tensor([ids]))[0].float().numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def test_embeddings_are_pooled_states_of_length_one(server: RunningServer, served_runs: Any) -> None:
    texts = ["the quick brown fox", "is this film good or bad?"]
    for pooling, pool in {None: lambda s: s.mean(0), "mean": lambda s: s.mean(0), "last": lambda s: s[-1]}.items():
        body = {"model": "topics", "input": texts, "pooling": pooling}
        answer = server.http.post("/v1/embeddings", json=body).json()
        assert (answer["object"], answer["model"]) == ("list", "topics")
        for index, (entry, text) in enumerate(zip(answer["data"], texts, strict=True)):
            assert (entry["object"], entry["index"]) == ("embedding", index)
            expected = unit(pool(states_of(served_runs["topics"], text)))
            assert np.allclose(entry["embedding"], expected, atol=1e-4)
    tokens = sum(len(server.state.registry.get("topics").backbone.tokenizer(text)["input_ids"]) for text in texts)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    other = server.http.post("/v1/embeddings", json={"model": "lm", "input": texts}).json()
    assert not np.allclose(other["data"][0]["embedding"], answer["data"][0]["embedding"], atol=1e-3)  # its own adapter


def test_the_openai_client_reads_them(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    packed = client.embeddings.create(model="topics", input=["good", "bad"])  # it asks for base64 by itself
    plain = client.embeddings.create(model="topics", input=["good", "bad"], encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert np.allclose(one.embedding, other.embedding, atol=1e-6)
    ids = server.state.registry.get("topics").backbone.tokenizer("good")["input_ids"]
    for by_ids in (ids, [ids]):
        answer = client.embeddings.create(model="topics", input=by_ids)
        assert np.allclose(answer.data[0].embedding, plain.data[0].embedding, atol=1e-4)
    with pytest.raises(openai.NotFoundError, match="no model 'none'"):
        client.embeddings.create(model="none", input="a")
    with pytest.raises(openai.BadRequestError, match="dimensions is not supported"):
        client.embeddings.create(model="topics", input="a", dimensions=4)


def test_what_is_null_is_not_set(server: RunningServer) -> None:
    for path in ("/v1/embeddings", "/pooling", "/classify"):
        body = {"model": "topics", "input": "good"}
        assert server.http.post(path, json=body | {"dimensions": None, "user": None, "priority": None}).is_success
        assert server.http.post(path, json=body | {"model": None}).json()["error"]["param"] == "model"


def test_pooling_gives_a_state_a_token(server: RunningServer, served_runs: Any) -> None:
    expected = states_of(served_runs["topics"], "the fox")
    answer = server.http.post("/pooling", json={"model": "topics", "input": "the fox"}).json()
    assert answer["object"] == "list"
    assert answer["data"][0]["object"] == "pooling"
    assert np.allclose(answer["data"][0]["data"], expected, atol=1e-3)
    body = {"model": "topics", "input": "the fox", "task": "embed", "encoding_format": "base64", "normalize": None}
    packed = server.http.post("/pooling", json=body).json()["data"][0]["data"]
    assert np.allclose(np.frombuffer(base64.b64decode(packed), "<f4"), unit(expected[-1]), atol=1e-4)
    raw = server.http.post("/pooling", json=body | {"normalize": False, "encoding_format": "float"}).json()
    assert np.allclose(raw["data"][0]["data"], expected[-1], atol=1e-3)


@pytest.mark.parametrize(
    ("value", "status", "param"),
    [
        ("", 400, "input"),
        ([], 400, "input"),
        (["a", ""], 400, "input[1]"),
        ([[1], []], 400, "input[1]"),
        ([1, 10**6], 400, "input"),
        ([1, -1], 400, "input"),
        ([1, True], 400, "input[0]"),
        (["a", [1.5]], 400, "input[1]"),
        ({"a": 1}, 400, "input"),
        (None, 400, "input"),
        (["a"] * 1025, 400, "input"),
        (["a", "the lazy dog " * 200], 422, "input[1]"),
    ],
)
def test_a_bad_input_is_named(value: Any, status: int, param: str, server: RunningServer) -> None:
    for path in ("/v1/embeddings", "/pooling"):
        response = server.http.post(path, json={"model": "topics", "input": value})
        assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
