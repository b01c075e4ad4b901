"""`gptask predict`: order, streaming, bad rows."""

import csv
import datetime
import io
import json
import math
import os
import subprocess
import sys
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gptask import DataError, GenerationOptions, Lora, UserError, load_run, train
from gptask.config.schemas import BadRowPolicy, DType, Files, Predict
from gptask.runs.predict_file import predict
from gptask.runs.prediction_identity import run_identity
from gptask.runs.predictor import MAX_CHUNK
from gptask_tasks.classification import Classification
from gptask_tasks.translation import Translation

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
    assert [line["text"] for line in lines] == ["good", "bad", "good", "", "bad"]
    assert [line["row"] for line in lines] == [1, 2, 1, 2, 3]
    assert [line.get("n") for line in lines] == ["1", "2", None, None, None]
    assert "review" not in lines[0]
    assert lines[3] == {"row": 2, "text": "", "prediction": None}
    assert lines[0]["score"] == pytest.approx(lines[2]["score"], abs=1e-5)


def test_predictions_in_int4_are_those_of_the_run_in_int4_and_have_an_identity_of_their_own(
    random_run, tmp_path, needs_int4
):
    run = random_run(Translation(generation=GenerationOptions(max_new_tokens=4)), "llama", Lora(rank=2))
    (tmp_path / "in.jsonl").write_text('{"source": "good film"}\n{"source": "the lazy dog"}\n')
    call(run, tmp_path / "in.jsonl", output=str(tmp_path / "out.jsonl"), dtype=DType.int4)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    in_int4 = load_run(run.folder, dtype=DType.int4)
    expected = list(in_int4.predict(["good film", "the lazy dog"]))
    assert [line["prediction"] for line in lines] == [prediction.value for prediction in expected]
    assert [line["score"] for line in lines] == pytest.approx([prediction.score for prediction in expected], abs=1e-5)
    in_bfloat16 = load_run(run.folder, dtype=DType.bfloat16)
    identities = [run_identity(one)["weights"] for one in (in_int4, in_bfloat16)]
    assert identities == [["int4", "torch.bfloat16", "torch.float32"], ["bfloat16", "torch.bfloat16", "torch.float32"]]


def test_columns_of_the_training_are_read_and_not_repeated_but_never_chosen_by_chance(tmp_path, capsys):
    file, small = tmp_path / "train.csv", {"max_steps": 1, "accelerator": "cpu"}
    file.write_text("text,review,label\n" + "".join(f"t{n},r{n},{'ab'[n % 2]}\n" for n in range(20)))
    data = Files(train=str(file), columns={"text": "review"})
    run = train(small_config(tmp_path, task=Classification(), data=data, trainer=small))
    (tmp_path / "a.csv").write_text("review,n\ngood,1\n")
    call(run, tmp_path / "a.csv")
    line = json.loads(capsys.readouterr().out)
    assert (line["text"], line["n"], "review" in line) == ("good", "1", False)
    (prediction,) = run.predict({"review": "good"})
    assert prediction.score == pytest.approx(line["score"], abs=1e-5)
    message = r"1: the text may be in 'text', 'review': the run has read it from review\. Set data\.columns\.text="
    with pytest.raises(DataError, match=message):
        list(run.predict({"text": "good", "review": "good"}))
    with pytest.raises(DataError, match=message.replace("1:", "train.csv:2:")):
        call(run, file)
    call(run, file, data=Files(columns={"text": "review"}))
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] == "r0"


def test_a_bad_row_ends_with_its_file_and_line_after_the_rows_before_it(run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"txet": "bad"}\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: no column 'text'.*Did you mean 'txet'.*on_error=skip"):
        call(run, tmp_path / "in.jsonl")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_skipping_writes_the_error_in_place_of_the_row(run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n{"text": "", "n": 2}\nbroken\n{"text": "fine"}\n')
    call(run, tmp_path / "in.jsonl", on_error=BadRowPolicy.skip)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert "in.jsonl:2" in lines[1]["error"]
    assert lines[1].items() >= {"row": 2, "text": "", "n": 2, "prediction": None}.items()
    assert lines[2].items() >= {"row": 3, "prediction": None}.items()


def test_standard_input_is_json_lines_or_plain(run, monkeypatch, capsys):
    for content in (b'{"text": "good"}\n', b"good\n"):
        monkeypatch.setattr("gptask.runs.predict_file.stdin", lambda content=content: io.BytesIO(content))
        call(run, "-")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["good", "good"]
    assert lines[0]["probabilities"] == pytest.approx(lines[1]["probabilities"])


def read_all(path):
    """The rows of an output, by the libraries that its readers would use."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream, strict=True))
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


EVERYDAY = [
    {"id": 7, "text": "good, very good", "score": 1, "p_positive": "mine", "input_score": 2, "row": "a", "tags": ["x"]},
    {
        "id": 8,
        "text": 'says "no"\r\nor 很好',
        "score": 3,
        "p_positive": "mine",
        "input_score": 4,
        "row": "b",
        "tags": [],
    },
    {},
    {"id": 9, "text": "", "score": 5, "p_positive": "mine", "input_score": 6, "row": "c", "tags": None},
    {"id": 10, "text": "bad", "score": 7, "p_positive": "mine", "input_score": 8, "row": "d", "tags": ["y"], "late": 1},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".out"])
def test_every_format_has_a_line_for_each_row_and_all_columns(suffix, run, tmp_path, caplog):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EVERYDAY))
    output = tmp_path / f"out{suffix}"
    with caplog.at_level("INFO", "gptask"):
        call(run, tmp_path / "in.jsonl", output=str(output), on_error=BadRowPolicy.skip)
    assert f"5 rows written to {output} (1 blank, 1 with an error)" in caplog.messages
    rows, typed, table = read_all(output), suffix != ".csv", suffix in (".csv", ".parquet")
    assert [int(row["row"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [row.get("text") or "" for row in rows] == [row.get("text", "") for row in EVERYDAY]
    none = None if typed else ""
    full = [rows[0], rows[1], rows[3], rows[4]]
    assert [row["id"] for row in full] == ([7, 8, 9, 10] if typed else ["7", "8", "9", "10"])
    assert [str(row["input_input_score"]) for row in full] == ["1", "3", "5", "7"]  # the input's score
    assert [str(row["input_score"]) for row in full] == ["2", "4", "6", "8"]
    assert [row["input_row"] for row in full] == ["a", "b", "c", "d"]
    assert [row["input_p_positive" if table else "p_positive"] for row in full] == ["mine"] * 4
    assert full[0]["tags"] == (["x"] if typed else '["x"]')
    assert [row.get("prediction") in run.task.labels for row in rows] == [True, True, False, False, True]
    assert [rows[2]["prediction"], rows[3]["prediction"]] == [none, none]
    assert [bool(row.get("error")) for row in rows] == [False, False, False, True, False]
    assert "in.jsonl:4: the text is empty" in rows[3]["error"]
    (expected,) = run.predict("bad")
    last = rows[4]
    assert float(last["score"]) == pytest.approx(expected.score, abs=1e-5)
    if table:
        shares = {label: float(last[f"p_{label}"]) for label in run.task.labels}
        assert shares == pytest.approx(expected.probabilities, abs=1e-5)
        assert not {"probabilities", "samples", "extra"} & {*rows[0]}
        assert list(rows[0])[-2 - (suffix == ".parquet") :][:2] == ["rest", "error"]
    assert (json.loads(last["rest"]) if suffix == ".csv" else last)["late"] == 1


def test_an_output_of_another_format_is_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gptask.runs.predict_file.load_run", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "in.txt").write_text("good\n")
    for suffix in (".xlsx", ".XLS", ".tsv", ".json", ".gz", ".zip", ".feather"):
        with pytest.raises(UserError, match=rf"writes \.csv, \.parquet and \.jsonl, not \{suffix.lower()}"):
            call(run, tmp_path / "in.txt", output=str(tmp_path / f"out{suffix}"))
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt"}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_empty_input_gives_no_row(suffix, run, tmp_path, caplog):
    (tmp_path / "in.txt").write_text("")
    with caplog.at_level("INFO", "gptask"):
        call(run, tmp_path / "in.txt", output=str(tmp_path / f"out{suffix}"))
    assert read_all(tmp_path / f"out{suffix}") == []
    assert any(message.startswith("0 rows written") for message in caplog.messages)
    if suffix == ".csv":
        assert (tmp_path / "out.csv").read_text() == "row,prediction,score,rest\n"


def test_columns_of_every_input_format_are_kept(run, tmp_path):
    when = datetime.datetime(2026, 1, 2, 3, 4)
    table = {"n": [1, None], "when": [when, None], "price": [Decimal("1.50"), None], "x": [math.nan, 1.5]}
    pq.write_table(pa.table({"text": ["good", "bad"], **table}), tmp_path / "in.parquet")
    call(run, tmp_path / "in.parquet", output=str(tmp_path / "out.parquet"))
    call(run, tmp_path / "in.parquet", output=str(tmp_path / "out.jsonl"))
    rows = read_all(tmp_path / "out.parquet")
    assert [rows[0][name] for name in ("n", "when", "price")] == [1, when, Decimal("1.50")]
    assert math.isnan(rows[0]["x"])
    line = read_all(tmp_path / "out.jsonl")[0]  # strict JSON: no NaN
    assert [line[name] for name in ("n", "when", "price", "x")] == [1, "2026-01-02T03:04:00", "1.50", None]
    (tmp_path / "in.csv").write_text("1,good,x\n2,bad,y\n")
    call(run, tmp_path / "in.csv", output=str(tmp_path / "b.jsonl"), data=Files(header=False, columns={"text": 1}))
    rows = read_all(tmp_path / "b.jsonl")
    assert [(row["text"], row["0"], row["2"]) for row in rows] == [("good", "1", "x"), ("bad", "2", "y")]
    (tmp_path / "in.csv").write_text("key,review,text\nk1,good,other\n")
    call(
        run, tmp_path / "in.csv", output=str(tmp_path / "c.jsonl"), data=Files(columns={"text": "review", "id": "key"})
    )
    (row,) = read_all(tmp_path / "c.jsonl")
    assert (row["id"], row["text"], row["input_text"]) == ("k1", "good", "other")
    assert not {"key", "review"} & {*row}


@pytest.mark.parametrize(
    "content",
    [
        b"n,text\n1,good\n2,bad\n",
        b"n;text\n1;good\n2;bad\n",
        b'[{"n": "1", "text": "good"},\n {"n": "2", "text": "bad"}]\n',
        b'{"n": "1", "text": "good"}\n{"n": "2", "text": "bad"}\n',
    ],
)
def test_tables_and_json_arrays_on_standard_input_are_rows(content, run, monkeypatch, capsys):
    monkeypatch.setattr("gptask.runs.predict_file.stdin", lambda: io.BytesIO(content))
    call(run, "-")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["row"], line["n"], line["text"]) for line in lines] == [(1, "1", "good"), (2, "2", "bad")]


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


# --- streams as shells make them ----------------------------------------------------------------------------------


def test_a_reader_that_stops_ends_the_command_quietly(run, tmp_path, monkeypatch, caplog):
    (tmp_path / "in.txt").write_text("good\nbad\n")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stdout, caplog.at_level("INFO", "gptask"):
        monkeypatch.setattr("sys.stdout", stdout)
        call(run, tmp_path / "in.txt")
    assert "0 rows written to standard output, whose reader has closed it" in caplog.messages


@pytest.mark.parametrize(("name", "message"), [("__stdout__", "output is closed"), ("__stdin__", "input is closed")])
def test_a_closed_stream_is_a_user_error(name, message, run, monkeypatch):
    monkeypatch.setattr(f"sys.{name}", None)
    with pytest.raises(UserError, match=message):
        call(run, "-")


@pytest.mark.long
def test_no_stream_that_a_shell_makes_loses_rows_or_shows_a_stack_trace(run, tmp_path):
    (tmp_path / "in.txt").write_text("good é\n\n很好\n", encoding="utf-8")
    (tmp_path / "many.txt").write_text("good\n" * 2000)
    program = f"{sys.executable} -c 'from gptask.cli import main; main()'"

    def shell(options, variables="", after=""):
        command = f"{variables} {program} predict run={run.folder} {options} {after}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=tmp_path, check=False)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert b"Fatal" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stdout

    for variables in ("PYTHONIOENCODING=ascii", "LANG=C LC_ALL=C", "PYTHONIOENCODING=cp1252",
                      "PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=POSIX"):  # fmt: skip
        code, out = shell("input=in.txt", variables)
        assert (code, [json.loads(line)["text"] for line in out.splitlines()]) == (0, ["good é", "", "很好"])
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        code, _ = shell("input=in.txt output=out.csv", after=closed)
        assert (code, len(read_all(tmp_path / "out.csv"))) == (0, 3)
    assert shell("input=in.txt", after=">&-")[0] == 2
    assert shell("input=in.txt", after="> /dev/full")[0] == 2
    code, out = shell("input=many.txt", after="| head -2")
    assert (code, len(out.splitlines())) == (0, 2)
    code, out = shell("input=-", "(echo good; echo bad; sleep 1; echo fine) |", "| head -1")
    assert (code, len(out.splitlines())) == (0, 1)
