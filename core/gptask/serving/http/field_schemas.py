"""A task's fields and predictions as JSON Schema."""

from __future__ import annotations

from typing import Any

from gptask.plugins.task import Task
from gptask.plugins.types import Field, Kind

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FILLED_TEXT: Schema = {"type": "string", "pattern": r"\S"}
WHOLE_NUMBER: Schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
MESSAGE: Schema = {
    "type": "object",
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": TEXT},
    "required": ["role", "content"],
}
SCHEMAS: dict[Kind, Schema] = {
    Kind.TEXT: TEXT,
    Kind.TEXTS: {"anyOf": [FILLED_TEXT, {"type": "array", "items": FILLED_TEXT, "minItems": 1}]},
    Kind.LABEL: FILLED_TEXT,
    Kind.LABELS: {"type": "array", "items": FILLED_TEXT},
    Kind.INTEGERS: {"anyOf": [WHOLE_NUMBER, {"type": "array", "items": WHOLE_NUMBER}]},
    Kind.NUMBER: {"type": "number"},
    Kind.MESSAGES: {"anyOf": [FILLED_TEXT, {"type": "array", "items": MESSAGE, "minItems": 1}]},
    Kind.TOKENS: {"anyOf": [FILLED_TEXT, {"type": "array", "items": FILLED_TEXT, "minItems": 1}]},
    Kind.TAGS: {"type": "array", "items": TEXT},
}
EXAMPLES: dict[Kind, Any] = {
    Kind.TEXTS: ["a text"],
    Kind.LABEL: "label",
    Kind.LABELS: ["label"],
    Kind.INTEGERS: [0],
    Kind.NUMBER: 1.0,
    Kind.MESSAGES: [{"role": "user", "content": "Hello"}],
    Kind.TOKENS: ["Ada", "met", "Bob"],
    Kind.TAGS: ["O"],
}
ANSWER: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "integer"], "description": "that of the example, where it has one"},
        "prediction": {"description": "the value that the task predicts"},
        "score": {"type": ["number", "null"], "description": "how sure the model is, from 0 to 1"},
        "samples": {"type": "array", "description": "all values drawn, where there are several"},
        "probabilities": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        "extra": {"type": "object", "description": "what else the task says"},
        "truncated": {"type": "integer", "minimum": 0, "description": "tokens of the example that were cut off"},
    },
    "required": ["prediction", "truncated"],
    "additionalProperties": False,
}


def example_schema(task: Task) -> Schema:
    """The schema of one example: an object of the task's fields, or a text where the task reads a single one."""
    fields = task.inputs()
    converts_rows = type(task).convert_row is not Task.convert_row
    properties = {field.name: field_schema(field) for field in fields}
    properties["id"] = {"anyOf": [TEXT, WHOLE_NUMBER], "description": "comes back with the prediction"}
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": [] if converts_rows else [field.name for field in fields if field.required],
        "additionalProperties": converts_rows,
    }
    is_single = len([field for field in fields if field.required]) == 1
    return {"anyOf": [schema, FILLED_TEXT]} if is_single else schema


def field_schema(field: Field) -> Schema:
    """The schema of one field; a field that is not required may be null."""
    schema = dict(
        FILLED_TEXT if field.kind is Kind.TEXT and field.required and not field.blank else SCHEMAS[field.kind]
    )
    if not field.required:
        schema = {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}
    return schema | ({"description": field.help} if field.help else {})


def sample_example(task: Task) -> dict[str, Any]:
    """An example of the schema: what each required field holds, in its own words."""
    return {field.name: EXAMPLES.get(field.kind, field.help or "a text") for field in task.inputs() if field.required}
