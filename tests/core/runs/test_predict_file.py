"""`gptask predict`: order, streaming, bad rows."""

import io
import json

import pytest
from gptask import DataError, UserError, train
from gptask.config.schemas import BadRowPolicy, Files, Predict
from gptask.runs.predict_file import predict
from gptask.runs.predictor import MAX_CHUNK

from tests.support.configs import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(small_config(tmp_path_factory.mktemp("outputs"), trainer={"max_steps": 1, "accelerator": "cpu"}))


def call(run, source, **changes):
    predict(Predict(task=run.task, run=str(run.folder), input=str(source), **({"data": Files()} | changes)))


def test_rows_keep_their_order_and_fields(run, tmp_path):
    texts = [f"{'long ' * (n % 7)}text number {n}" for n in range(MAX_CHUNK + 30)]
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


def test_columns_are_mapped_and_plain_lines_are_texts(run, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("review,n\ngood,1\nbad,2\n")
    call(run, tmp_path / "a.csv", data=Files(columns={"text": "review"}))
    (tmp_path / "b.txt").write_text("good\n\nbad\n")
    call(run, tmp_path / "b.txt")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["good", "bad"] * 2
    assert lines[0]["score"] == pytest.approx(lines[2]["score"], abs=1e-5)


def test_a_bad_row_ends_with_its_file_and_line_after_the_rows_before_it(run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"txet": "bad"}\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: no column 'text'.*Did you mean 'txet'.*on_error=skip"):
        call(run, tmp_path / "in.jsonl")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_skipping_writes_the_error_in_place_of_the_row(run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"text": ""}\nbroken\n{"text": "fine"}\n')
    call(run, tmp_path / "in.jsonl", on_error=BadRowPolicy.skip)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert "in.jsonl:2" in lines[1]["error"]


def test_standard_input_is_json_lines_or_plain(run, monkeypatch, capsys):
    for content in (b'{"text": "good"}\n', b"good\n"):
        monkeypatch.setattr("gptask.runs.predict_file.stdin", lambda content=content: io.BytesIO(content))
        call(run, "-")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["good", "good"]
    assert lines[0]["probabilities"] == pytest.approx(lines[1]["probabilities"])


def test_the_input_is_never_overwritten(run, tmp_path):
    (tmp_path / "in.txt").write_text("good\n")
    with pytest.raises(UserError, match="is the input"):
        call(run, tmp_path / "in.txt", output=str(tmp_path / "in.txt"))
    assert (tmp_path / "in.txt").read_text() == "good\n"


def test_a_missing_input_names_the_files_beside_it(run, tmp_path):
    (tmp_path / "here.txt").write_text("good\n")
    with pytest.raises(UserError, match=r"no such file.*here\.txt"):
        call(run, tmp_path / "gone.txt")


def test_an_unwritable_output_is_a_user_error(run, tmp_path):
    (tmp_path / "in.txt").write_text("good\n")
    with pytest.raises(UserError, match="can't be written"):
        call(run, tmp_path / "in.txt", output=str(tmp_path / "no/such/folder/out.jsonl"))
