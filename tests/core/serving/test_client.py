"""`gptask.Client`: predictions of a server's runs, and what a user reads when something is wrong."""

import json
import os
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import gptask
import pandas as pd
import pytest
from gptask import Client, DataError, UserError
from gptask.config.schemas import Data, Lora
from gptask.data.columns import Columns
from gptask.plugins.discovery import discover
from gptask.serving import client as client_module
from gptask.serving.remote_run import RemoteRun, input_description
from gptask_tasks.generation import TextGeneration
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation
from starlette.responses import PlainTextResponse, RedirectResponse, StreamingResponse

from tests.support.served_runs import ServedRuns, listening, refusal

TEXTS = ["good", "the quick brown fox jumps over the lazy dog", "bad film", "这部电影很好"]


@pytest.fixture(scope="module")
def runs(random_run):
    translation, chat = Translation(), TextGeneration()
    translation.generation.max_new_tokens = chat.generation.max_new_tokens = 3
    return {
        "stars": random_run(Sentiment(labels=["negative", "neutral", "positive"]), "llama", Lora(rank=2)),
        "news": random_run(translation, "llama", Lora(rank=2)),
        "chat": random_run(chat, "llama", Lora(rank=2)),
    }


@pytest.fixture(scope="module")
def address(runs):
    served = ServedRuns(runs)
    with listening(served.app()) as url:
        yield served, url


@pytest.fixture
def served(address, runs, monkeypatch):
    """The server's state, as at its start."""
    served, _ = address
    served.__init__(runs)
    monkeypatch.delenv("GPTASK_TOKEN", raising=False)
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.001)
    return served


@pytest.fixture
def client(address, served):
    with Client(address[1], timeout=20) as client:
        yield client


def same(actual, expected):
    assert [p.value for p in actual] == [p.value for p in expected]
    assert [p.score for p in actual] == pytest.approx([p.score for p in expected], abs=1e-5)
    assert [p.probabilities for p in actual] == [
        expected_p.probabilities and pytest.approx(expected_p.probabilities, abs=1e-5) for expected_p in expected
    ]


def test_predictions_are_the_run_s_for_everything_it_takes(client, runs):
    expected = list(runs["stars"].predict(TEXTS))
    rows = [{"text": text, "other": 1} for text in TEXTS]
    for examples in (TEXTS, rows, iter(rows), pd.DataFrame(rows)):
        same(list(client.predict("stars", examples)), expected)
    same(list(client.predict("stars", TEXTS[1])), expected[1:2])
    same(list(client.predict("news", {"source": "good"})), list(runs["news"].predict({"source": "good"})))
    assert list(client.predict("stars", [])) == []


def test_a_generator_is_drawn_as_it_is_needed_and_answered_in_order(client, runs):
    drawn = []

    def source():
        for number in range(500):
            drawn.append(number)
            yield f"good {number}" if number % 7 else "bad"

    predictions = client.predict("stars", source())
    assert drawn == []
    first = [next(predictions) for _ in range(40)]
    same(first, list(runs["stars"].predict([f"good {n}" if n % 7 else "bad" for n in range(40)])))
    assert len(drawn) < 400
    predictions.close()


def test_an_example_is_answered_before_the_next_one_is_there(client):
    answered = threading.Event()

    def source():
        yield "good"
        assert answered.wait(20)
        yield "bad"

    predictions = client.predict("stars", source())
    next(predictions)
    answered.set()
    assert len(list(predictions)) == 1


def test_threads_share_a_client(client, runs):
    expected = list(runs["stars"].predict(TEXTS))
    with ThreadPoolExecutor(4) as pool:
        for predictions in pool.map(lambda _: list(client.predict("stars", TEXTS)), range(8)):
            same(predictions, expected)


def test_rows_of_a_task_that_converts_them_are_sent_as_they_are(client, served, runs):
    rows = [{"instruction": "Say it.", "input": "now", "when": None}, "good film", {"messages": "hello"}]
    expected = [p.value for p in runs["chat"].predict(rows)]
    assert [p.value for p in client.predict("chat", rows)] == expected
    assert [json.loads(line) for line in served.lines] == rows


def test_models_and_ready(client, served, runs):
    assert [model["id"] for model in client.models()] == [*runs]
    assert client.models()[0]["fields"][0]["name"] == "text"
    served.faults = [refusal(503, "warming up"), refusal(503, "warming up")]
    client.ready()
    assert served.faults == []
    served.faults = [refusal(503, "warming up")]
    with pytest.raises(UserError, match="is not ready"):
        client.ready(timeout=0)


# --- examples that can't be used ------------------------------------------------------------------------------------


def test_a_bad_example_is_named_by_its_number_behind_the_predictions_before_it(client, served, monkeypatch):
    predictions = client.predict("stars", [*["good"] * 40, {"txet": "bad"}, "fine"])
    with pytest.raises(DataError, match=r"^example:41: no 'text' among txet.*Did you mean 'txet'"):
        [next(predictions) for _ in range(41)]
    with pytest.raises(UserError, match=r"predict\(\) takes a text"):
        client.predict("stars", 7)
    with pytest.raises(DataError, match=r"^example:2: it is empty"):
        list(client.predict("stars", ["good", {"text": ""}, "bad"])) and list(client.predict("stars", ["good", " "]))

    def encode(task, example, tokenizer, max_tokens):
        raise DataError("the prompt alone needs 900 tokens")

    monkeypatch.setattr(Sentiment, "encode", encode)
    with pytest.raises(DataError, match=r"^example:1: the prompt alone needs 900 tokens$"):
        list(client.predict("stars", ["good"]))


def test_one_line_that_is_too_long_spoils_its_own_answer_alone(client, served):
    predictions = client.predict("stars", ["good", "bad", "fine"])
    too_long = refusal(413, "a line has 2000 kB")
    served.faults = [too_long, served.fine, too_long]  # of the whole request, then of each line
    assert next(predictions).value
    with pytest.raises(DataError, match=r"^example:2: a line has 2000 kB"):
        next(predictions)


def test_shortened_inputs_are_told(client, caplog):
    assert len(list(client.predict("stars", ["good " * 900, "bad"]))) == 2
    assert "1 inputs are longer than the run reads; the server has shortened them" in caplog.messages


# --- the server -----------------------------------------------------------------------------------------------------


def test_an_unknown_run_is_refused_with_the_nearest_name(client, served, address):
    with pytest.raises(UserError, match=r"has no run 'star'; there are stars, news, chat. Did you mean 'stars'"):
        client.predict("star", "good")
    served.entries.append({"id": "smollm2", "object": "model", "fields": []})
    with pytest.raises(UserError, match=r"'smollm2' at .* is no run of a task"):
        client.predict("smollm2", "good")


def test_a_server_that_is_not_there(served):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Client(url, timeout=5) as client, pytest.raises(UserError, match=f"no server answers at {url}: .*Start"):
            client.models()
        with Client(url) as client, pytest.raises(UserError, match=f"the server at {url} does not answer"):
            client.ready(timeout=0)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "no address of a server; expected one such as http://127.0.0.1:8000"),
        ("localhost", "no address of a server"),
        ("ftp://host", "no address of a server"),
        ("http://", "no address of a server"),
        ("http://me:secret@host", "holds a user or a password"),
    ],
)
def test_an_address_is_checked(url, message):
    with pytest.raises(UserError, match=message) as error:
        Client(url)
    assert "secret" not in str(error.value)


def test_the_address_of_the_openai_client_is_taken_too(address, served):
    for url in (f"{address[1]}/v1", f"{address[1]}/v1/", f"{address[1]}/"):
        with Client(url) as client:
            assert client.url == address[1]
            assert client.models()


def test_the_token(client, served, address, monkeypatch):
    served.token = "s3cret"
    with pytest.raises(UserError, match=r"asks for a token: gptask\.Client\(url, token=\.\.\.\).*GPTASK_TOKEN"):
        client.models()
    with Client(address[1], "wr0ng") as other, pytest.raises(UserError, match="does not accept the token") as error:
        other.models()
    assert "wr0ng" not in str(error.value)
    with Client(address[1], "s3cret") as other:
        assert other.models()
    monkeypatch.setenv("GPTASK_TOKEN", "s3cret")
    with Client(address[1]) as other:
        assert len(list(other.predict("stars", "good"))) == 1
    for token in ("two words", "zwölf", "line\n"):
        with pytest.raises(UserError, match="no HTTP header can carry") as error:
            Client(address[1], token)
        assert token not in str(error.value)


def test_a_busy_server_is_asked_again_for_as_long_as_the_time_limit(client, served, address):
    predictions = client.predict("stars", ["good", "bad"])
    served.faults = [
        refusal(429, "full", retry_after="0"),
        refusal(503, "ends", retry_after="0.01"),
        refusal(429, "full"),
    ]
    assert len(list(predictions)) == 2
    assert served.faults == []
    served.faults = [refusal(503, "it took too long"), refusal(500, "unused")]
    with pytest.raises(UserError, match="is busy: it took too long"):  # no Retry-After: the same would happen again
        client.models()
    served.faults = [refusal(429, "full", retry_after="60")]
    with Client(address[1], timeout=1) as other, pytest.raises(UserError, match="is busy: full"):
        other.models()


def test_lines_that_a_server_has_no_time_for_are_sent_again(client, served, runs):
    texts = [f"good {number}" for number in range(9)]
    busy = json.dumps({"error": {"message": "not finished", "type": "timeout", "code": "timeout"}, "line": 1}).encode()
    expected = list(runs["stars"].predict(texts))
    answered = Counter()

    def change(line):  # of two requests, the first line alone is answered in time
        answered[served.requests] += 1
        return busy + b"\n" if served.requests in (2, 4) and answered[served.requests] > 1 else line

    served.change = change
    same(list(client.predict("stars", texts)), expected)
    assert len(served.lines) > len(texts)
    served.change = lambda line: busy + b"\n"  # even for one line alone
    with pytest.raises(UserError, match="has failed: not finished"):
        list(client.predict("stars", texts))


def test_answers_that_are_none(client, served, address):
    def cut():
        yield b'{"prediction": "positive"}\n'

    def after_models(*faults):
        predictions = client.predict("stars", ["good", "bad"])
        served.faults = list(faults)
        return predictions

    predictions = after_models(StreamingResponse(cut()))
    assert next(predictions).value == "positive"
    with pytest.raises(UserError, match="has answered 1 of 2 lines and closed"):
        next(predictions)
    with pytest.raises(UserError, match=r"answers 500: plugin failed \(request r7\)"):
        list(after_models(refusal(500, "plugin failed", x_request_id="r7")))
    for body in ("[1, 2]", '"prediction"', "<html>", '{"score": 1}', "7"):
        with pytest.raises(UserError, match=r"in a form that gptask .* does not know; use the same version"):
            list(after_models(PlainTextResponse(body)))
    error = {"error": {"message": "the head failed", "type": "server_error", "request_id": "r8"}}
    with pytest.raises(UserError, match=r"has failed: the head failed \(request r8\)"):
        list(after_models(PlainTextResponse(json.dumps(error))))
    served.faults = [RedirectResponse("https://elsewhere")]
    with pytest.raises(UserError, match="refers to https://elsewhere"):
        client.models()
    for answer, message in ((PlainTextResponse("no", 404), "is no gptask server"), (PlainTextResponse("{}"), "a form")):
        served.faults = [answer]
        with pytest.raises(UserError, match=message):
            client.models()
    served.entries[0]["fields"][0]["kind"] = "picture"
    with pytest.raises(UserError, match="use the same version of gptask on both sides"):
        client.predict("stars", "good")


def test_every_character_arrives(client, served, runs):
    odd = "line\u2028end\x85 \x1c\U0001f600 \\n"
    (expected,) = runs["stars"].predict([odd])
    served.change = lambda line: line.replace(b'"prediction": "', b'"prediction": "' + odd.replace("\x1c", "").encode())
    assert next(client.predict("stars", odd)).value.endswith(expected.value)
    assert json.loads(served.lines[-1])["text"] == odd


def test_given_up_predictions_leave_no_thread(client):
    predictions = client.predict("stars", (f"good {number}" for number in range(10_000)))
    next(predictions)
    predictions.close()
    threads = [thread for thread in threading.enumerate() if "(read_ahead)" in thread.name or "(post)" in thread.name]
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(address, served, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Client(address[1]) as client:
        assert client.models()


def test_the_description_of_every_task_reads_rows_as_the_task_does(client):
    for name, plugin in discover().items():
        task = plugin.task()
        data = {"columns": {field.name: f"my {field.name}" for field in task.fields()}}
        remote = RemoteRun(json.loads(json.dumps(input_description(task, data))), lambda *_: None)
        columns, own = remote.columns(Data(labels=None)), Columns(task, Data(labels=None), task.inputs())
        assert columns.required == own.required, name
        assert {*columns.non_empty} == {*own.non_empty}, name
        assert columns.kinds == own.kinds, name
        assert bool(columns.convert_row) == bool(own.convert_row), name
        assert remote.task.documents is task.documents, name
        assert columns.trained_columns.keys() == {field.name for field in task.fields()}, name


def test_it_is_public():
    assert gptask.Client is Client
    assert "GPTASK_TOKEN" not in os.environ
