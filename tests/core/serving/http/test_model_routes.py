"""What is served, and how the server is."""

from collections.abc import Callable
from typing import Any

import openai

from tests.core.serving.conftest import TASKS, RunningServer


def test_models_are_listed(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    *runs, bare = [model.id for model in client.models.list()]
    assert runs == list(TASKS)
    assert client.models.retrieve(bare).to_dict()["task"] is None
    assert client.models.retrieve("topics").object == "model"


def test_health_and_readiness(server: RunningServer, with_options: Callable[..., Any]) -> None:
    assert server.http.get("/ready").json() == {"status": "ready"}
    with with_options(ready=False) as other:
        response = other.http.get("/ready")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
        assert other.http.get("/health").json() == {"status": "alive"}


def test_metrics_are_prometheus_text(server: RunningServer) -> None:
    response = server.http.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert "gptask_requests_total" in response.text
