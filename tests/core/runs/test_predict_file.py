"""`gptask predict`: order, streaming, bad rows."""

import io
import json
import threading

import pytest
from gptask import DataError, UserError, load_run, train
from gptask.config.schemas import BadRowPolicy, Files, Predict
from gptask.runs.predict_file import predict
from gptask.runs.predictor import CHUNK

from tests.support.configs import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(small_config(tmp_path_factory.mktemp("outputs"), trainer={"max_steps": 1, "accelerator": "cpu"}))


def call(run, source, **changes):
    predict(Predict(task=run.task, run=str(run.folder), input=str(source), **({"data": Files()} | changes)))


def test_rows_keep_their_order_and_fields(run, tmp_path):
    texts = [f"{'long ' * (n % 7)}text number {n}" for n in range(CHUNK + 30)]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts))
    )
    call(run, tmp_path / "in.jsonl", output=str(tmp_path / "out.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == texts
    assert [line["id"] for line in lines] == [str(n) for n in range(len(texts))]
    assert all(line["prediction"] in run.task.labels and 0 <= line["score"] <= 1 for line in lines)
    alone = next(run.predict([{"text": texts[41]}]))
    assert lines[41]["score"] == pytest.approx(alone.score, abs=1e-5)


def test_every_format_and_plain_lines(run, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("review,n\ngood,1\nbad,2\n")
    call(run, tmp_path / "a.csv", data=Files(columns={"text": "review"}))
    (tmp_path / "b.txt").write_text("good\n\nbad\n")
    call(run, tmp_path / "b.txt")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["good", "bad"] * 2
    assert lines[0]["score"] == pytest.approx(lines[2]["score"], abs=1e-5)


def test_a_bad_row_stops_with_file_and_line_after_what_came_before(run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"txet": "bad"}\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: no column 'text'.*Did you mean 'txet'.*on_error=skip"):
        call(run, tmp_path / "in.jsonl")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_skipping_puts_the_error_into_the_rows_place(run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"text": ""}\nbroken\n{"text": "fine"}\n')
    call(run, tmp_path / "in.jsonl", on_error=BadRowPolicy.skip)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert "in.jsonl:2" in lines[1]["error"]


def test_output_appears_before_all_input_is_read(run):
    asked, answered = threading.Event(), threading.Event()

    def slow():
        yield {"text": "first"}
        asked.set()
        assert answered.wait(30), "the first row was not answered while the second was awaited"
        yield {"text": "second"}

    said = run.predict(slow())
    next(said)
    assert asked.wait(30)
    answered.set()
    assert len(list(said)) == 1


def test_standard_input_is_json_lines_or_plain(run, monkeypatch, capsys):
    for content in (b'{"text": "good"}\n', b"good\n"):
        monkeypatch.setattr("gptask.runs.predict_file.stdin", lambda content=content: io.BytesIO(content))
        call(run, "-")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["good", "good"]
    assert lines[0]["probabilities"] == pytest.approx(lines[1]["probabilities"])


def test_input_is_never_overwritten(run, tmp_path):
    (tmp_path / "in.txt").write_text("good\n")
    with pytest.raises(UserError, match="is the input"):
        call(run, tmp_path / "in.txt", output=str(tmp_path / "in.txt"))
    assert (tmp_path / "in.txt").read_text() == "good\n"


def test_no_such_input_names_what_is_there(run, tmp_path):
    (tmp_path / "here.txt").write_text("good\n")
    with pytest.raises(UserError, match=r"no such file.*here\.txt"):
        call(run, tmp_path / "gone.txt")


def test_an_unwritable_output_is_told(run, tmp_path):
    (tmp_path / "in.txt").write_text("good\n")
    with pytest.raises(UserError, match="can't be written"):
        call(run, tmp_path / "in.txt", output=str(tmp_path / "no/such/folder/out.jsonl"))


def test_python_users_get_predictions_lazily(run):
    said = load_run(run.folder).predict({"text": text} for text in ("good", "bad"))
    assert [p.value in run.task.labels for p in said] == [True, True]
    with pytest.raises(DataError, match="example:1"):
        list(run.predict([{"txt": "good"}]))
