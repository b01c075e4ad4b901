"""Requests of OpenAI's API: what is wrong is named, what is not supported is refused, null means not set."""

import json

import pytest
from gptask.serving.http.http_errors import ApiError
from gptask.serving.openai.openai_schemas import (
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    body_schema,
    parse_request,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def parsed(**fields):
    kind, base = (CompletionRequest, COMPLETION) if "prompt" in fields else (ChatRequest, CHAT)
    return parse_request(json.dumps(base | fields).encode(), kind)


def user(content, **fields):
    return {"role": "user", "content": content} | fields


WRONG = [  # request, the field that is named, a part of the message
    ({"temprature": 1}, "temprature", "unknown field 'temprature'; known: .* Did you mean 'temperature'"),
    ({"temperature": 2.5}, "temperature", "less than or equal to 2; got 2.5"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": True}, "temperature", "valid number; got True"),
    ({"temperature": "1"}, "temperature", "valid number; got '1'"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"n": True}, "n", "valid integer; got True"),
    ({"n": 17}, "n", "less than or equal to 16"),
    ({"n": 10**400}, "n", "less than or equal to 16"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differs from max_completion_tokens"),
    ({"seed": 2**63}, "seed", "less than 9223372036854775808"),
    ({"seed": 1.5}, "seed", "valid integer"),
    ({"stop": list("abcde")}, "stop", "up to 4, each of 1 to 256 characters"),
    ({"stop": ""}, "stop", "1 to 256 characters"),
    ({"stop": ["a", ""]}, "stop[1]", "at least 1 character"),
    ({"stop": "x" * 257}, "stop", "1 to 256 characters"),
    ({"stream": "yes"}, "stream", "valid boolean; got 'yes'"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream=true"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
    ({"logprobs": True, "top_logprobs": 6}, "top_logprobs", "less than or equal to 5"),
    ({"frequency_penalty": -3}, "frequency_penalty", "greater than or equal to -2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.1"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "'xml' is not supported; expected 'text'"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "which needs one"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
     "response_format.json_schema.schema", "required"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"tool_choice": "auto"}, "tool_choice", "not supported; got 'auto'"),
    ({"logit_bias": {"50256": -100}}, "logit_bias", "not supported"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", "not supported"),
    ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    ({"store": True}, "store", "not supported"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "hi"}, "messages", "valid list"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required, a text"),
    ({"messages": [user(5)]}, "messages[0].content", "expected a text, or a list of parts of type text; got 5"),
    ({"messages": [user("a"), user("b"), user([IMAGE])]}, "messages[2].content[0].type", "'image_url' is not"),
    ({"messages": [user([{"type": "text", "text": "a"}, {"type": "input_audio"}])]},
     "messages[0].content[1].type", "'input_audio' is not supported; expected 'text'"),
    ({"messages": [user("a", name="Ann")]}, "messages[0].name", "not supported; got 'Ann'"),
    ({"messages": [user("a", tool_calls=[{}])]}, "messages[0].tool_calls", "not supported"),
    ({"messages": [user("a", colour="red")]}, "messages[0].colour", "unknown field"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'tool' is not supported; expected"),
    ({"messages": [user("a"), {"role": "system", "content": "b"}, user("c")]}, "messages[1].role", "must come first"),
    ({"messages": [user("a"), {"role": "assistant", "content": "b"}]}, "messages[1].role", "must be the user's"),
    ({"model": None}, "model", "required"),
    ({"prompt": None}, "prompt", "required, a text, a list of texts, a list of token ids"),
    ({"prompt": 5}, "prompt", "expected a text, a list of texts"),
    ({"prompt": []}, "prompt", "at least one prompt"),
    ({"prompt": ["a", 1]}, "prompt[1]", "expected a text, a list of texts.*; got 1"),
    ({"prompt": [True]}, "prompt[0]", "expected a text"),
    ({"prompt": [[1], []]}, "prompt[0]", "expected a text"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, "echo", "not supported together with logprobs"),
    ({"prompt": "a", "best_of": 3}, "best_of", "not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), WRONG)
def test_a_wrong_field_is_named(fields, param, message):
    with pytest.raises(ApiError, match=message) as caught:
        parsed(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no valid JSON"),
        (b"[1]", "must be a JSON object; got"),
        (b'{"temperature": NaN}', "no valid JSON"),
        (b'{"model": "\\ud800"}', "no valid JSON"),
        (b'{"model": "\xff"}', "no valid JSON"),
        (b"[" * 100_000, "no valid JSON: recursion limit"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body, message):
    with pytest.raises(ApiError, match=message):
        parse_request(body, ChatRequest)


@pytest.mark.parametrize(("kind", "base"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
def test_null_means_not_set_in_every_field_at_once(kind, base):
    nulls = dict.fromkeys({*kind.model_fields, *UNSUPPORTED} - base.keys())
    assert len(nulls) > 25
    assert parse_request(json.dumps(base | nulls).encode(), kind) == parse_request(json.dumps(base).encode(), kind)


@pytest.mark.parametrize(("name", "values"), UNSUPPORTED.items())
def test_values_that_ask_for_nothing_are_no_error(name, values):
    for value in values:
        assert parsed(**{name: value}) == parsed()


def test_an_answer_of_ours_may_be_sent_back():
    answer = {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
        "audio": None,
    }
    assert [m.text for m in parsed(messages=[user("a"), answer, user("b")]).messages] == ["a", "a", "b"]


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a\n"}, {"type": "text", "text": "b"}]
    assert parsed(messages=[user(parts)]).messages[0].text == "a\nb"


def test_what_is_null_in_a_schema_stays():
    schema = {"type": "object", "properties": {"a": {"const": None}}}
    request = parsed(response_format={"type": "json_schema", "json_schema": {"schema": schema, "strict": None}})
    assert request.response_format.json_schema.schema_ == schema


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ("", [""])],
)
def test_a_prompt_has_four_forms(prompt, prompts):
    assert parsed(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_the_schema_for_the_openapi_page_has_no_references(kind):
    schema = body_schema(kind)["requestBody"]["content"]["application/json"]["schema"]
    assert "$ref" not in json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["n"]["maximum"] == 16
