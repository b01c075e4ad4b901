"""The client on the server itself: a file predicted by `gptask serve` gives the lines of `gptask predict`."""

import json

import pytest
from gptask import Client, DataError
from gptask.cli import main
from gptask.config.schemas import DType, Lora, Pretrained, Serve
from gptask.serving.http_app import create_app
from gptask.serving.server import build_state
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.support.near_answers import assert_near
from tests.support.served_runs import listening

ROWS = {
    "stars": [{"text": f"the fox {number} " * (number % 9 + 1), "n": number} for number in range(70)],
    "news": [{"source": text, "id": text} for text in ("good", "the lazy dog", "is it \u2028 bad?", "", "很好")],
    "spans": [{"context": "the dog is lazy", "question": "is it good?"}, {"context": "", "question": "is it?"}],
    "tags": [{"tokens": ["the", "fox"]}, {"tokens": ["good", "film", "is", "it"]}, {"tokens": []}],
    "chat": [{"messages": [{"role": "user", "content": "is it?"}]}, {"messages": "hello"}, {"messages": "good " * 400}],
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(random_run):
    translation, chat = Translation(), TextGeneration()
    translation.generation.max_new_tokens = chat.generation.max_new_tokens = 3
    tasks = {
        "stars": Sentiment(labels=["negative", "neutral", "positive"]),
        "news": translation,
        "spans": QuestionAnswering(answer=AnswerForm.span),
        "tags": TokenTagging(types=["PER"], plain=False),
        "chat": chat,
    }
    return {name: random_run(task, "llama", Lora(rank=2)) for name, task in tasks.items()}


@pytest.fixture(scope="module")
def url(folders):
    runs = [f"{name}:{run.folder}" for name, run in folders.items()]
    backbone = Pretrained(source=folders["stars"].backbone.origin.location, dtype=DType.float32)
    state = build_state(Serve(runs=runs, backbone=backbone))
    app = create_app(state)
    try:
        if "/v1/models" not in json.dumps(app.openapi()):
            pytest.skip("this server has no /v1/models yet")
        with listening(app) as url:
            yield url
    finally:
        state.registry.close()
        state.batcher.drain(20)


def predicted(where, file, folder):
    output = folder / "out.jsonl"
    with pytest.raises(SystemExit) as end:
        main(["predict", *where, f"input={file}", f"output={output}", "on_error=skip"])
    assert end.value.code == 0
    return [json.loads(line) for line in output.read_text("utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("name", ROWS)
def test_a_file_gives_the_lines_of_the_run_by_itself(name, url, folders, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), "utf-8")
    remote = predicted((f"server={url}", f"run={name}"), file, tmp_path)
    local = predicted((f"run={folders[name].folder}",), file, tmp_path)
    if name == "chat":  # the server makes messages of a row, and the client has the row as it is
        remote, local = ([line | {"messages": None} for line in lines] for lines in (remote, local))
    assert_near(remote, local, 1e-4)


def test_the_client_knows_what_the_server_has(url, folders):
    with Client(url) as client:
        client.ready()
        assert {*folders} <= {model["id"] for model in client.models()}
        rows = [ROWS["stars"][0], {"text": "good"}, {"txet": "bad"}]
        predictions = client.predict("stars", rows)
        expected = list(folders["stars"].predict(rows[:2]))
        for prediction in expected:
            assert next(predictions).probabilities == pytest.approx(prediction.probabilities, abs=1e-4)
        with pytest.raises(DataError, match=r"^example:3: no 'text'"):
            next(predictions)
