"""The OpenAPI description: a path for each run with its fields, as the server takes and gives them."""

from copy import copy
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from gptask import Field, Kind
from gptask.serving.http.field_schemas import field_schema
from gptask.serving.http_app import create_app

from tests.core.serving.conftest import EXAMPLES, RunningServer


def resolved(node: Any, root: Any) -> Any:
    """A schema with what its references stand for."""
    if isinstance(node, dict) and "$ref" in node:
        for part in node["$ref"].split("/")[1:]:
            root = root[part]
        return root
    if isinstance(node, dict):
        return {name: resolved(value, root) for name, value in node.items()}
    return [resolved(value, root) for value in node] if isinstance(node, list) else node


@pytest.fixture(scope="module")
def description(server: RunningServer) -> dict[str, Any]:
    return server.http.get("/openapi.json").json()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_runs_path_describes_what_it_takes_and_gives(
    name: str, server: RunningServer, description: dict[str, Any]
) -> None:
    operation = resolved(description["paths"][f"/v1/predict/{name}"]["post"], description)
    content = operation["requestBody"]["content"]["application/json"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    bodies = [EXAMPLES[name], EXAMPLES[name][0], *(sample["value"] for sample in content["examples"].values())]
    for body in bodies:
        jsonschema_rs.validate(content["schema"], body)
        response = server.predict(name, body)
        assert response.status_code == 200, response.text
        jsonschema_rs.validate(answer, response.json())
    error = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
    jsonschema_rs.validate(error, server.predict(name, 3).json())
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(content["schema"], 3)


def test_unknown_fields_are_no_part_of_it(description: dict[str, Any]) -> None:
    schema = description["paths"]["/v1/predict/qa"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    one = schema["anyOf"][0]
    assert one["required"] == ["context", "question"]
    assert one["additionalProperties"] is False
    assert description["components"]["schemas"]["Prediction"]["additionalProperties"] is False
    assert "/v1/predict/{name}" not in description["paths"]
    assert "HTTPValidationError" not in str(description)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_schema(kind: Kind) -> None:
    jsonschema_rs.meta.validate(field_schema(Field("a", kind, help="what it is")))
    jsonschema_rs.validate(field_schema(Field("a", kind, required=False)), None)


def test_runs_that_come_later_appear(server: RunningServer) -> None:
    registry = copy(server.state.registry)
    registry.models = {"topics": registry.models["topics"]}
    app = create_app(replace(server.state, registry=registry, token="secret"))
    assert "/v1/predict/later" not in app.openapi()["paths"]
    assert app.openapi() is app.openapi()
    registry.models = {**registry.models, "later": server.state.registry.models["qa"]}
    assert "/v1/predict/later" in app.openapi()["paths"]
    assert app.openapi()["security"] == [{"token": []}]
