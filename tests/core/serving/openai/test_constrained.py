"""A constraint lets only JSON of its schema be written, for every kind of tokenizer, and gives up without harm."""

import json
import random

import jsonschema_rs
import pytest
import torch
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.serving.http.http_errors import ApiError
from gptask.serving.openai import constrained
from gptask.serving.openai.constrained import JsonGrammars
from gptask.serving.openai.openai_schemas import ResponseFormat

from tests.support.tokenizers import KINDS, TEXT, tokenizer_of

SCHEMA = {
    "type": "object",
    "properties": {"a b": {"type": "string", "maxLength": 5}, "kind": {"enum": ["x y", "这"]}, "n": {"type": "null"}},
    "required": ["a b", "kind", "n"],
    "additionalProperties": False,
}


class Model:
    """What a constraint needs of a backbone."""

    def __init__(self, kind):
        self.tokenizer = text_tokenizer(tokenizer_of(kind))
        self.stop_ids = {self.tokenizer.eos_token_id}


def constraint_of(model, schema):
    wanted = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": schema}})
    return JsonGrammars().constraints(model, wanted, 2)[0]


def written(model, constraint, seed, vocabulary):
    """Random tokens that are allowed, until the text ends."""
    draw, ids = random.Random(seed), []
    while len(ids) < 400:
        token = draw.choice(constraint.allowed(vocabulary).nonzero()[:, 0].tolist())
        constraint.advance(token)
        if token in model.stop_ids:
            break
        ids.append(token)
    return model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", KINDS)
def test_random_tokens_are_json_of_the_schema(kind):
    model = Model(kind)
    for seed in range(4):
        text = written(
            model, constraint_of(model, SCHEMA), seed, len(model.tokenizer) + 7
        )  # rows behind the last token
        jsonschema_rs.validate(SCHEMA, json.loads(text))


def test_the_end_is_allowed_where_the_grammar_ends():
    model = Model("byte-level")
    constraint = constraint_of(model, {"enum": [12]})
    (end,) = model.stop_ids
    for token in model.tokenizer.encode("12"):
        assert not constraint.allowed(423)[end]
        constraint.advance(token)
    assert constraint.allowed(423).nonzero()[:, 0].tolist() == [end]


def test_a_grammar_is_compiled_once_and_its_texts_are_apart(monkeypatch):
    model, grammars, wanted = Model("byte-level"), JsonGrammars(), ResponseFormat(type="json_object")
    first, second = grammars.constraints(model, wanted, 2)
    first.advance(model.tokenizer.encode("{")[0])
    assert not torch.equal(first.allowed(423), second.allowed(423))
    monkeypatch.setattr(constrained, "LLMatcher", None)
    grammars.constraints(model, wanted, 1)


def test_a_constraint_that_is_given_up_ends_the_text(monkeypatch):
    monkeypatch.setitem(constrained.LIMITS, "step_max_items", 1)
    model = Model("byte-level")
    constraint = constraint_of(model, SCHEMA)
    written(model, constraint, 0, 423)
    assert constraint.failure
    assert constraint.allowed(423).nonzero()[:, 0].tolist() == sorted(model.stop_ids)


def test_a_schema_that_takes_too_long_to_compile_is_refused(monkeypatch):
    monkeypatch.setitem(constrained.LIMITS, "initial_lexer_fuel", 500)
    with pytest.raises(ApiError, match=r"response_format: .*too big"):
        constraint_of(Model("byte-level"), {"enum": [*range(900)]})


@pytest.mark.parametrize("target", ["#", "#/$defs/a"])
def test_a_schema_that_refers_to_itself_alone_is_refused(target):
    with pytest.raises(ApiError, match=r"response_format: no text can follow the schema; does a \$ref lead to itself"):
        constraint_of(Model("byte-level"), {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": target})


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_those_of_the_text(kind):
    model = Model(kind)
    content = JsonGrammars().token_bytes(model)
    ids = model.tokenizer.encode(TEXT[:103], add_special_tokens=False)
    assert b"".join(map(content, ids)).removeprefix(b" ") == TEXT[:103].encode()
