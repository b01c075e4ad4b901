"""`gptask predict server=...`: the output of `gptask predict run=<folder>`, from a run that a server has."""

import json
import os
import queue
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gptask.cli import main
from gptask.config.schemas import Lora
from gptask.runs import part_file, predict_file
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging

from tests.support.near_answers import assert_near
from tests.support.served_runs import ServedRuns, listening

WITHOUT_TORCH = """
import sys
from gptask.cli import main
try:
    main(sys.argv[1:])
finally:
    loaded = {"torch", "transformers", "peft"} & {*sys.modules}
    assert not loaded, loaded
"""


@pytest.fixture(scope="module")
def runs(random_run):
    return {
        "stars": random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2)),
        "tags": random_run(TokenTagging(types=["PER"], plain=False), "llama", Lora(rank=2)),
    }


@pytest.fixture(scope="module")
def served(runs):
    served = ServedRuns(runs)
    with listening(served.app()) as served.url:
        yield served


@pytest.fixture
def predict(served, runs, tmp_path, monkeypatch, capsys):
    """Predict a file by the server and by the run's folder; return both outputs."""
    monkeypatch.chdir(tmp_path)

    def call(run, *overrides, suffix=".jsonl"):
        outputs = []
        for where in ((f"server={served.url}", f"run={run}"), (f"run={runs[run].folder}",)):
            outputs.append(tmp_path / f"out{len(outputs)}{suffix}")
            with pytest.raises(SystemExit) as end:
                main(["predict", *where, *overrides, f"output={outputs[-1]}"])
            assert end.value.code == 0, capsys.readouterr().err
        return outputs

    return call


def test_json_lines_with_bad_rows_and_blank_ones(predict, tmp_path):
    rows = ['{"id": 7, "text": "good", "score": 1}', '{"text": ""}', "broken", "{}", '{"txet": "bad"}']
    rows += [json.dumps({"text": f"the fox {number} " * (number % 9 + 1), "n": number}) for number in range(80)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n")
    remote, local = predict("stars", "input=in.jsonl", "on_error=skip")
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (remote, local)]
    assert_near(*lines)
    assert len(lines[0]) == 85
    assert sum("error" in line for line in lines[0]) == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_by_their_columns_delimiter_and_encoding(suffix, predict, tmp_path):
    (tmp_path / "in.csv").write_bytes("Meinung;n\ngut, sehr schön;1\nübel;2\n".encode("cp1252"))
    options = "data.columns.text=Meinung", "data.delimiter=;", "data.encoding=cp1252"
    remote, local = predict("stars", "input=in.csv", *options, suffix=suffix)
    if suffix == ".parquet":
        assert_near(pq.read_table(remote).to_pylist(), pq.read_table(local).to_pylist())
        assert pq.read_table(remote)["text"].to_pylist() == ["gut, sehr schön", "übel"]
    else:
        tables = [[line.split(",") for line in path.read_text().splitlines()] for path in (remote, local)]
        assert tables[0][0] == tables[1][0]
        assert len(tables[0]) == 3


def test_a_table_with_a_word_a_row_and_a_parquet_file(predict, tmp_path):
    words = "sentence,Word,Tag\n1,the,O\n,fox,O\n2,good,O\n,film,O\n"
    (tmp_path / "words.csv").write_text(words)
    remote, local = predict("tags", "input=words.csv", "data.columns={tokens: Word, tags: Tag, sentence: sentence}")
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (remote, local)]
    assert_near(*lines)
    assert [line["tokens"] for line in lines[0]] == [["the", "fox"], ["good", "film"]]
    pq.write_table(pa.table({"text": ["good", "bad"], "when": [None, None]}), tmp_path / "in.parquet")
    remote, local = predict("stars", "input=in.parquet")
    assert_near(*([json.loads(line) for line in path.read_text().splitlines()] for path in (remote, local)))


def test_a_stop_keeps_the_rows_and_the_same_command_goes_on(served, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(part_file, "COMMIT_SECONDS", 0.0)
    (tmp_path / "in.txt").write_text("".join(f"film {number}\n" for number in range(100)))
    command = ["predict", f"server={served.url}", "run=stars", f"input={tmp_path / 'in.txt'}"]
    command.append(f"output={tmp_path / 'out.jsonl'}")
    line = predict_file._line

    def stop_at_70(number, *arguments):
        if number == 70:
            raise KeyboardInterrupt
        return line(number, *arguments)

    monkeypatch.setattr(predict_file, "_line", stop_at_70)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 130
    assert "the first 64 rows are kept in" in (error := capsys.readouterr().err)
    assert "the same command goes on after them" in error
    monkeypatch.setattr(predict_file, "_line", line)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0
    assert "64 rows are taken over from" in (error := capsys.readouterr().err)
    assert "100 rows written to" in error
    lines = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["row"] for row in lines] == [*range(1, 101)]
    assert [row["text"] for row in lines] == [f"film {number}" for number in range(100)]


def test_a_line_of_standard_input_is_answered_before_the_next_one_is_there(served, monkeypatch):
    answers, rows = queue.Queue(), []

    def lines():
        for _ in range(3):
            yield b"good\n"
            rows.append(json.loads(answers.get(timeout=20))["row"])

    monkeypatch.setattr("gptask.runs.predict_file.stdin", lines)
    monkeypatch.setattr("gptask.runs.predict_file._write_to_stdout", answers.put)
    with pytest.raises(SystemExit) as end:
        main(["predict", f"server={served.url}", "run=stars", "input=-"])
    assert end.value.code == 0
    assert rows == [1, 2, 3]


def test_neither_torch_nor_a_plugin_is_needed(served, tmp_path):
    (tmp_path / "in.txt").write_text("good\nbad\n")
    arguments = ["predict", f"server={served.url}/v1/", "run=stars", f"input={tmp_path / 'in.txt'}"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    environment = os.environ | {"GPTASK_PLUGINS": "none"}  # no plugin is installed
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["good", "bad"]


def test_what_is_wrong_is_told(served, tmp_path, monkeypatch, capsys, refused):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"txet": "bad"}\n')
    server, file = f"server={served.url}", f"input={tmp_path / 'in.jsonl'}"

    def told(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["predict", *arguments])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "has no run 'star'; there are stars, tags. Did you mean 'stars'?" in told(server, "run=star", file)
    assert "in.jsonl:2: no column 'text' for text" in (error := told(server, "run=stars", file))
    assert "on_error=skip writes the error" in error
    assert "no address of a server" in told("server=localhost", "run=stars", file)
    assert "token_env=NOWHERE: there is no such" in told(server, "run=stars", file, "token_env=NOWHERE")
    monkeypatch.setattr(served, "token", "s3cret")
    assert "asks for a token" in told(server, "run=stars", file)
    monkeypatch.setenv("MINE", "s3cret")
    assert "in.jsonl:2: no column" in told(server, "run=stars", file, "token_env=MINE")
    assert "no such file" in told(server, "run=stars", "input=nowhere.csv")


@pytest.mark.parametrize(
    "override",
    ["task=qa", "task.labels=[a]", "engine=reference", "engine.packing=off", "dtype=int4", "data.max_tokens=9"],
)
def test_what_the_server_decides_is_refused(override, refused):
    message = refused("predict", "server=http://127.0.0.1:1", "run=stars", "input=a.csv", override)
    assert f"{override}: with server= the server decides this" in message
    assert ("run=<name>.<task>" in message) == (override == "task=qa")


def test_without_a_server_the_run_is_a_folder(refused):
    assert "no run folder at stars" in refused("predict", "run=stars", "input=a.csv", "server=null")
