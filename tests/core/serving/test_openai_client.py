"""The plain client of OpenAI against a real server on this machine."""

import threading
from collections.abc import Iterator

import openai
import pytest
import uvicorn
from gptask.serving.http_app import create_app


@pytest.fixture(scope="module")
def client(writing_state) -> Iterator[openai.OpenAI]:
    config = uvicorn.Config(create_app(writing_state), host="127.0.0.1", port=0, log_config=None, lifespan="off")
    server, listens = uvicorn.Server(config), threading.Event()
    startup = server.startup

    async def start(sockets=None):
        await startup(sockets)
        listens.set()

    server.startup = start
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listens.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0, timeout=20) as client:
        yield client
    server.should_exit = True
    thread.join(10)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "is it good?"}], "max_tokens": 20, "seed": 3}
COMPLETION = {"model": "tiny", "prompt": "这部", "max_tokens": 20, "seed": 3, "n": 2}


def test_chat_whole_and_streamed(client):
    answer = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=1)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content) == answer.usage.completion_tokens - (choice.finish_reason == "stop")
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].usage == answer.usage


def test_completions_whole_and_streamed(client):
    answer = client.completions.create(**COMPLETION)
    streamed = ["", ""]
    for chunk in client.completions.create(**COMPLETION, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert [choice.text for choice in answer.choices] == streamed


def test_structured_output(client):
    schema = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}
    schema["additionalProperties"] = False
    format_ = {"type": "json_schema", "json_schema": {"name": "opinion", "strict": True, "schema": schema}}
    answer = client.chat.completions.create(**CHAT, response_format=format_)
    assert answer.choices[0].message.content.replace(" ", "") in ('{"good":true}', '{"good":false}')


def test_a_stream_that_is_left_leaves_the_server_well(client):
    with client.chat.completions.create(**CHAT | {"max_tokens": 60}, stream=True) as stream:
        next(iter(stream))
    assert client.chat.completions.create(**CHAT).choices


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'") as caught:
        client.chat.completions.create(**CHAT | {"model": "gpt-4"})
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="tools: not supported") as caught:
        client.chat.completions.create(**CHAT, tools=[{"type": "function", "function": {"name": "f"}}])
    assert caught.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="tiny", prompt=[3] * 500, stream=True)


def test_models_are_listed(client):
    try:
        models = client.models.list()
    except openai.NotFoundError:
        pytest.skip("this server lists no models")
    assert {"tiny", "answers"} <= {model.id for model in models}
