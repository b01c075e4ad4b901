"""The OpenAPI description: FastAPI's of the fixed routes, and a path of its own for each run that is served."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import FastAPI

from gptask.serving.http.field_schemas import ANSWER, Schema, example_schema, sample_example
from gptask.serving.http.predicting import MAX_EXAMPLES
from gptask.serving.models.served_run import ServedRun
from gptask.serving.state import ServerState

ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field of the request that is wrong"},
                "code": {"type": ["string", "null"]},
                "request_id": {"type": "string"},
            },
            "required": ["message", "type", "param", "code", "request_id"],
        }
    },
    "required": ["error"],
}
ERROR_ANSWERS: dict[str, Any] = {
    status: {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for status, description in (("4XX", "the request is wrong, or too much at once"), ("5XX", "the server failed"))
}


def install_openapi(app: FastAPI, state: ServerState) -> None:
    """Have ``app.openapi()`` describe the runs that are served at the time of the call."""
    fixed_part = app.openapi
    cached: tuple[list[Any], dict[str, Any]] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal cached
        models = [*state.registry.models.items()]
        if cached is None or cached[0] != models:  # models are compared by identity
            cached = models, _with_runs(fixed_part(), dict(models), secured=bool(state.token))
        return cached[1]

    app.openapi = openapi  # type: ignore[method-assign]


def _with_runs(fixed_part: dict[str, Any], models: dict[str, Any], secured: bool) -> dict[str, Any]:
    paths = {path: dict(operations) for path, operations in fixed_part["paths"].items()}
    for name, model in models.items():
        if isinstance(model, ServedRun):
            paths[f"/v1/predict/{quote(name)}"] = {"post": _operation(name, model)}
    for operations in paths.values():
        for method, operation in operations.items():
            answers = {status: answer for status, answer in operation["responses"].items() if status != "422"}
            operations[method] = operation | {"responses": answers | ERROR_ANSWERS}
    components = dict(fixed_part.get("components", {}))
    schemas = dict(components.get("schemas", {}))
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors, which no route gives
        schemas.pop(name, None)
    components["schemas"] = schemas | {"Error": ERROR, "Prediction": ANSWER}
    description = fixed_part | {"paths": paths, "components": components}
    if secured:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"token": []}]
    return description


def _operation(name: str, model: ServedRun) -> dict[str, Any]:
    task = model.run.task
    example, answer = example_schema(task), {"$ref": "#/components/schemas/Prediction"}
    sample = sample_example(task)
    lines = {"type": "string", "description": "JSON, an example a line; the answers come a line each, in order"}
    body = {
        "application/json": {
            "schema": {"anyOf": [example, {"type": "array", "items": example, "maxItems": MAX_EXAMPLES}]},
            "examples": {"one": {"value": sample}, "several": {"value": [sample | {"id": "a"}]}},
        },
        "application/x-ndjson": {"schema": lines},
    }
    answers = {
        "application/json": {"schema": {"anyOf": [answer, {"type": "array", "items": answer}]}},
        "application/x-ndjson": {"schema": {"type": "string"}},
    }
    return {
        "summary": f"Predict with {name}: {(type(task).__doc__ or model.run.plugin.name).strip().splitlines()[0]}",
        "operationId": f"predict_{name}",
        "tags": ["predict"],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "a prediction for each example", "content": answers}},
    }
