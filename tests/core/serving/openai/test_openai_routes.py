"""Chat and completions of a running app on tiny random models: texts, log-probabilities, streams, JSON, errors."""

import asyncio
import json
import threading
from contextlib import contextmanager

import httpx2
import pytest
import torch
from gptask.model.backbone.chat_template import chat_template_of
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions
from gptask.serving.http_app import create_app
from gptask.serving.openai import openai_routes

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOO_LONG = "context_length_exceeded"
LONG = [{"role": "user", "content": "fox " * 200}]
HI = [{"role": "user", "content": "is it good?"}]
MIXED = " 这部电影🙂很好, film é👨‍👩‍👧 good!"  # characters of 1 to 4 bytes, mostly a token a byte


@pytest.fixture(scope="module")
def app(writing_state):
    return create_app(writing_state)


@pytest.fixture
def post(app):
    """``post(path, model=...)``: the response."""

    def send(path, **body):
        async def request():
            transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.post(path, json={"model": "tiny"} | body)

        return asyncio.run(request())

    return send


@pytest.fixture
def ask(post):
    """The same for what must succeed: the answer, or the chunks of a stream."""

    def send(path, **body):
        response = post(path, **body)
        assert response.status_code == 200, response.text
        return events(response.text) if body.get("stream") else response.json()

    return send


def events(text):
    """The chunks of a stream, whose end must be marked."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(chunks, number=0):
    """The text of a choice, from the chunks of a stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == number]
    assert [bool(choice["finish_reason"]) for choice in choices] == [False] * (len(choices) - 1) + [True]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices)


@pytest.fixture
def dictate(writing_state, monkeypatch):
    """``dictate(text)``: the bare backbone writes these tokens, then EOS."""
    backbone = writing_state.registry.models["tiny"].backbone

    def write(text):
        ids = [*backbone.tokenizer(text)["input_ids"], backbone.tokenizer.eos_token_id]
        left = iter(ids)
        monkeypatch.setattr(
            backbone, "logits", lambda hidden: torch.nn.functional.one_hot(torch.tensor([next(left)]), 320) * 20.0
        )
        return ids

    return write


# --- texts --------------------------------------------------------------------------------------------------------


def test_a_completion_equals_the_generated_text(ask, writing_state):
    backbone = writing_state.registry.models["tiny"].backbone
    prompt = backbone.tokenizer.encode("the quick brown")
    (expected,) = generate(backbone, [prompt], GenerationOptions(max_new_tokens=16))
    answer = ask(COMPLETIONS, prompt="the quick brown", temperature=0)
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert choice["text"] == expected.text.rstrip("\ufffd")
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert answer["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 16, "total_tokens": len(prompt) + 16}


def test_a_chat_answer_follows_the_template(ask, writing_state):
    backbone = writing_state.registry.models["tiny"].backbone
    messages = [{"role": "system", "content": "be good"}, *HI]
    template = chat_template_of(backbone.tokenizer)
    prompt = template.tokenize(messages).ids
    (expected,) = generate(backbone, [prompt], GenerationOptions(max_new_tokens=9, stop=template.stop_texts))
    answer = ask(CHAT, messages=[{"role": "developer", "content": "be good"}, *HI], max_tokens=9, temperature=0)
    assert answer["object"] == "chat.completion"
    message = answer["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": expected.text.rstrip("\ufffd").removeprefix(" "),
        "refusal": None,
    }
    assert answer["usage"]["prompt_tokens"] == len(prompt)


def test_a_run_answers_with_its_adapter_and_its_stop_texts(ask, writing_state):
    run = writing_state.registry.models["answers"]
    prompt = run.backbone.tokenizer.encode("the quick")
    (expected,) = generate(run.backbone, [prompt], GenerationOptions(max_new_tokens=16, stop=["q"]))
    answer = ask(COMPLETIONS, model="answers", prompt="the quick", temperature=0)
    assert answer["choices"][0]["text"] == expected.text.rstrip("\ufffd")
    assert answer["choices"][0]["text"] != ask(COMPLETIONS, prompt="the quick", temperature=0)["choices"][0]["text"]


def test_prompts_and_choices_are_all_answered_and_a_seed_repeats_them(ask):
    request = {"prompt": ["the fox", "is it"], "n": 3, "seed": -5, "temperature": 2.0, "max_tokens": 6}
    answer = ask(COMPLETIONS, **request)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len(set(texts)) == 6
    assert [choice["text"] for choice in ask(COMPLETIONS, **request)["choices"]] == texts
    alone = ask(COMPLETIONS, **request | {"prompt": "is it", "n": 2})
    assert [choice["text"] for choice in alone["choices"]] == texts[3:5]
    assert answer["usage"]["prompt_tokens"] < alone["usage"]["prompt_tokens"] * 3
    chunks = ask(COMPLETIONS, stream=True, **request)
    assert [joined(chunks, number) for number in range(6)] == texts


def test_whole_texts_are_decoded_beside_the_event_loop(ask, monkeypatch):
    threads, update = [], openai_routes.ChoiceText.update

    def noted(choice):
        threads.append(threading.current_thread())
        return update(choice)

    monkeypatch.setattr(openai_routes.ChoiceText, "update", noted)
    ask(COMPLETIONS, prompt=["a", "b"], max_tokens=2)
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_ids_are_a_prompt_too_and_echo_shows_it(ask, writing_state):
    ids = writing_state.registry.models["tiny"].backbone.tokenizer.encode("the fox")
    text = ask(COMPLETIONS, prompt="the fox", temperature=0)["choices"][0]["text"]
    for prompt in (ids, [ids], "the fox"):
        request = {"prompt": prompt, "temperature": 0, "echo": True}
        assert ask(COMPLETIONS, **request)["choices"][0]["text"] == f"the fox{text}"
        assert joined(ask(COMPLETIONS, stream=True, **request)) == f"the fox{text}"


def test_penalties_change_a_text(ask):
    def text(**options):
        return ask(COMPLETIONS, prompt="the", temperature=0, max_tokens=30, **options)["choices"][0]["text"]

    texts = {text(), text(frequency_penalty=2), text(presence_penalty=2), text(repetition_penalty=3)}
    assert len(texts) == 4


# --- characters of several tokens, stop texts ---------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, "film", ["🙂很", "never"], "👩", "m é", " 这", "!"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_streamed_text_is_the_text_and_nothing_of_a_stop_text(path, stop, ask, dictate):
    texts = [stop] if isinstance(stop, str) else stop or []
    end = min((MIXED.index(text) for text in texts if text in MIXED), default=len(MIXED))
    expected = MIXED[:end].removeprefix(" ") if path == CHAT else MIXED[:end]
    request = {"messages": HI} if path == CHAT else {"prompt": "a"}
    request |= {"max_tokens": 90, "temperature": 0, "stop": stop}
    dictate(MIXED)
    (choice,) = ask(path, **request)["choices"]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]) == expected
    assert choice["finish_reason"] == "stop"
    dictate(MIXED)
    assert joined(ask(path, stream=True, **request)) == expected


def test_an_answer_at_the_limit_ends_before_an_incomplete_character(ask, dictate):
    dictate("é🙂")
    answer = ask(COMPLETIONS, prompt="a", max_tokens=4)
    assert answer["choices"][0]["text"] == "é"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_stop_text_is_taken_as_it_stands(ask, dictate):
    dictate("a\nb\\nc")
    assert ask(COMPLETIONS, prompt="a", stop="\\n", temperature=0)["choices"][0]["text"] == "a\nb"


# --- log-probabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, "film"])
def test_log_probabilities_of_chat_have_the_bytes_of_the_text(stop, ask, dictate):
    request = {"messages": HI, "logprobs": True, "top_logprobs": 2, "max_tokens": 90, "temperature": 0, "stop": stop}
    dictate(MIXED)
    (choice,) = ask(CHAT, **request)["choices"]
    tokens = choice["logprobs"]["content"]
    content = bytes(byte for token in tokens for byte in token["bytes"]).decode()
    assert content.removesuffix("fil") == choice["message"]["content"]  # a token that begins before the stop text
    assert "bytes:\\xf0" in [token["token"] for token in tokens]
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    assert all(token["top_logprobs"][0]["logprob"] == token["logprob"] for token in tokens)
    dictate(MIXED)
    chunks = [chunk["choices"][0] for chunk in ask(CHAT, stream=True, **request)]
    assert [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]] == tokens


@torch.no_grad()
def test_log_probabilities_of_completions_are_the_models_own_and_have_offsets(ask, writing_state):
    backbone = writing_state.registry.models["tiny"].backbone
    prompt = backbone.tokenizer.encode("good")
    request = {"prompt": "good", "logprobs": 3, "temperature": 1.7, "seed": 3, "top_k": 4, "max_tokens": 12}
    (choice,) = ask(COMPLETIONS, **request)["choices"]
    logprobs, text = choice["logprobs"], choice["text"]
    row_ids = [*prompt]
    for token, value, top, offset in zip(*(logprobs[name] for name in (
        "tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True):  # fmt: skip
        values = backbone.model(torch.tensor([row_ids])).logits[0, -1].log_softmax(-1)
        chosen = min(range(len(values)), key=lambda n, values=values, value=value: abs(float(values[n]) - value))
        row_ids.append(chosen)
        assert float(values[chosen]) == pytest.approx(value, abs=1e-4)
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(values.topk(3).values.tolist(), abs=1e-4)
        assert top[token] == value
        if not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token
    assert backbone.tokenizer.decode(row_ids[len(prompt) :]).rstrip("\ufffd") == text
    streamed = [c["choices"][0]["logprobs"] for c in ask(COMPLETIONS, stream=True, **request)]
    assert [token for part in streamed for token in part["tokens"]] == logprobs["tokens"]
    assert [offset for part in streamed for offset in part["text_offset"]] == logprobs["text_offset"]


def test_without_alternatives_there_are_none(ask):
    (choice,) = ask(COMPLETIONS, prompt="a", logprobs=0, max_tokens=2)["choices"]
    assert len(choice["logprobs"]["tokens"]) == 2
    assert choice["logprobs"]["top_logprobs"] is None


# --- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_begins_with_the_role_and_ends_with_the_reason_and_the_usage(ask):
    chunks = ask(CHAT, messages=HI, n=2, max_tokens=5, stream=True, stream_options={"include_usage": True})
    assert [chunk["choices"][0]["delta"]["role"] for chunk in chunks[:2]] == ["assistant"] * 2
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert "usage" not in ask(CHAT, messages=HI, max_tokens=2, stream=True)[0]


def test_an_error_in_a_stream_is_its_last_event(post, monkeypatch, writing_state, dictate):
    dictate("abc")
    backbone = writing_state.registry.models["tiny"].backbone
    logits, calls = backbone.logits, []

    def fails(hidden):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("secret")
        return logits(hidden)

    monkeypatch.setattr(backbone, "logits", fails)
    response = post(CHAT, messages=HI, stream=True)
    assert response.status_code == 200
    *_, last = response.text.strip().split("\n\n")
    assert last.startswith("event: error\ndata: ")
    error = json.loads(last.partition("data: ")[2])["error"]
    assert (error["type"], "secret" in last) == ("server_error", False)
    assert "[DONE]" not in response.text


@contextmanager
def busy(batcher):
    """A time in which the batcher computes nothing."""
    free, begun = threading.Event(), threading.Event()
    batcher.call(lambda: begun.set() or free.wait(10))
    assert begun.wait(10)
    try:
        yield
    finally:
        free.set()


def test_a_silent_stream_is_kept_alive(ask, post, monkeypatch, writing_state):
    monkeypatch.setattr(openai_routes, "KEEP_ALIVE_S", 0.01)
    with busy(writing_state.batcher):
        text = None

        def run():
            nonlocal text
            text = post(CHAT, messages=HI, max_tokens=3, stream=True).text

        silent, kept = openai_routes.TextStream.wait, threading.Event()

        async def counted(self):
            news = await silent(self)
            if not news:
                kept.set()
            return news

        monkeypatch.setattr(openai_routes.TextStream, "wait", counted)
        thread = threading.Thread(target=run)
        thread.start()
        assert kept.wait(10)
        kept.clear()
        assert kept.wait(10)
    thread.join(10)
    assert text.count(": alive\n\n") >= 1
    joined(events(text))


def test_a_client_that_goes_away_drops_its_rows(app, writing_state, monkeypatch):
    works, submit = [], writing_state.batcher.submit
    monkeypatch.setattr(writing_state.batcher, "submit", lambda work: (works.append(work), submit(work)))
    body = json.dumps({"model": "tiny", "messages": HI, "stream": True}).encode()

    async def leave():
        left, messages = asyncio.Event(), [{"type": "http.request", "body": body}]

        async def receive():
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if b"delta" in message.get("body", b""):
                left.set()

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"content-type", b"application/json")]}
        with busy(writing_state.batcher):
            monkeypatch.setattr(openai_routes, "KEEP_ALIVE_S", 0.01)
            scope |= {"query_string": b"", "root_path": "", "asgi": {"spec_version": "2.4"}, "http_version": "1.1"}
            await asyncio.wait_for(app(scope, receive, send), 10)

    asyncio.run(leave())
    (work,) = works
    assert work.cancelled


# --- JSON ---------------------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "sex": {"enum": ["f", "m", "这部"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "sex", "age", "tags"],
    "additionalProperties": False,
}


def json_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def test_texts_are_json_of_the_schema_whatever_the_weights_are(ask):
    import jsonschema_rs

    request = {"messages": HI, "response_format": json_format(PERSON), "n": 8, "temperature": 2.0, "max_tokens": 90}
    answer = ask(CHAT, **request, seed=1)
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        value = json.loads(choice["message"]["content"])
        jsonschema_rs.validate(PERSON, value)
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1
    chunks = ask(CHAT, **request, seed=1, stream=True)
    assert [joined(chunks, n) for n in range(8)] == [choice["message"]["content"] for choice in answer["choices"]]


def test_json_that_is_cut_says_so(ask):
    (choice,) = ask(CHAT, messages=HI, response_format=json_format(PERSON), max_tokens=5)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("{")


def test_json_object_begins_an_object(ask):
    format_ = {"type": "json_object"}
    (choice,) = ask(CHAT, messages=HI, response_format=format_, max_tokens=5)["choices"]
    assert choice["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "colour"}, "Invalid type: colour"),
        ({"not": {}}, "Unimplemented keys"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"$ref": "http://example.org/x"}, "not present in a registry"),
        ({"enum": ["x" * 70_000]}, "at most 65536 are compiled"),
    ],
)
def test_a_schema_that_can_not_be_followed_is_refused(schema, message, post):
    response = post(CHAT, messages=HI, response_format=json_format(schema))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    assert message in response.json()["error"]["message"]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code", "message"),
    [
        (CHAT, {"model": "nano", "messages": HI}, 404, "model", "model_not_found", "tiny, answers, mood"),
        (CHAT, {"model": "mood", "messages": HI}, 400, "model", "model_not_supported", "'sentiment'.*predict/mood"),
        (CHAT, {"messages": LONG}, 400, "messages", TOO_LONG, "context has 128 tokens"),
        (COMPLETIONS, {"prompt": [3] * 129}, 400, "prompt", TOO_LONG, "prompt would take 129"),
        (COMPLETIONS, {"prompt": [3] * 100, "max_tokens": 30}, 400, "max_tokens", TOO_LONG, "at most 29 tokens"),
        (CHAT, {"messages": HI, "max_completion_tokens": 500}, 400, "max_completion_tokens", TOO_LONG, "500 in the"),
        (COMPLETIONS, {"prompt": ""}, 400, "prompt", None, "no tokens"),
        (COMPLETIONS, {"prompt": ["a", ""]}, 400, "prompt[1]", None, "no tokens"),
        (COMPLETIONS, {"prompt": [5, -1]}, 400, "prompt", None, "0 to 319; got -1"),
        (COMPLETIONS, {"prompt": [[5], [320]]}, 400, "prompt[1]", None, "0 to 319; got 320"),
        (COMPLETIONS, {"prompt": ["a"] * 20, "n": 7}, 400, "prompt", None, "at most 128 texts"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(path, body, status, param, code, message, post):
    import re

    response = post(path, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"])


def test_a_prompt_that_fills_the_context_gets_a_token(ask):
    assert ask(COMPLETIONS, prompt=[3] * 128)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("content", ["", "\n" * 100, "\0" * 9, "\u202e\ufffd\uffff", "<|endoftext|>" * 5])
def test_odd_texts_are_texts(content, ask):
    assert ask(CHAT, messages=[{"role": "user", "content": content}], max_tokens=3)["choices"]
    if content:
        assert ask(COMPLETIONS, prompt=content, max_tokens=3)["choices"]
