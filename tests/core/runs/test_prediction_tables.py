"""Tables of predictions: one set of columns, every value readable again, types that all row groups share."""

import csv
import json

import pyarrow.parquet as pq
import pytest
from gptask import UserError
from gptask.runs import parquet_chunks, prediction_tables
from gptask.runs.predict_file import open_writer, output_format
from gptask.runs.prediction_lines import Line

PREDICTED = {"prediction": "good", "score": 0.5}


def write(path, lines, with_errors=False):
    with open_writer(str(path), with_errors) as writer:
        for number, (cells, fields) in enumerate(lines, 1):
            writer.write(Line(number, cells, fields, None))


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def test_the_ending_names_the_format():
    names = {"a.csv": ".csv", "b.CSV": ".csv", "c.parquet": ".parquet", "d.jsonl": ".jsonl", "e.ndjson": ".jsonl",
             "f.txt": ".jsonl", "g": ".jsonl", "h.v2": ".jsonl", "-": ".jsonl"}  # fmt: skip
    assert {name: output_format(name) for name in names} == names
    with pytest.raises(UserError, match=r"output=x\.xlsx: predict writes \.csv, \.parquet and \.jsonl, not \.xlsx"):
        output_format("x.xlsx")


def test_rows_before_the_first_prediction_get_its_columns(tmp_path):
    none, probable = {"prediction": None}, PREDICTED | {"probabilities": {"a": 0.5, "b": 0.5}}
    write(tmp_path / "out.csv", [({"text": ""}, none), ({"text": "x"}, probable), ({"text": "y"}, none)])
    rows = read_csv(tmp_path / "out.csv")
    assert [list(row) for row in rows] == [["row", "text", "prediction", "score", "p_a", "p_b", "rest"]] * 3
    assert [row["p_a"] for row in rows] == ["", "0.5", ""]


def test_rows_without_any_prediction_do_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_tables, "MAX_HELD", 3)
    with open_writer(str(tmp_path / "out.csv"), True) as writer:
        for number in range(1, 6):
            writer.write(Line(number, {"text": ""}, {"prediction": None}, "bad"))
        assert len(read_csv(tmp_path / "out.csv")) == 5
    assert [row["error"] for row in read_csv(tmp_path / "out.csv")] == ["bad"] * 5


def test_lists_samples_and_late_labels_are_json_in_a_cell(tmp_path):
    spans = [{"type": "PER", "start": 0, "end": 1}]
    fields = {"prediction": spans, "samples": ["a", "b"], "extra": {"n": 1}}
    labels = [{"probabilities": {"a": 0.9}}, {"probabilities": {"a": 0.8, "new": 0.1}}]
    write(tmp_path / "out.csv", [({"tokens": ["Ada"]}, fields | shares) for shares in labels])
    first, second = read_csv(tmp_path / "out.csv")
    assert json.loads(first["prediction"]) == spans
    assert json.loads(first["tokens"]) == ["Ada"]
    assert json.loads(first["rest"]) == {"samples": ["a", "b"], "extra": {"n": 1}}
    assert json.loads(second["rest"])["probabilities"] == {"new": 0.1}
    assert (first["p_a"], second["p_a"]) == ("0.9", "0.8")


@pytest.mark.parametrize("text", ["a\rb", "a\r\nb", "a\nb", 'a"b', "a,b", " a ", "", "é很\ud800"])
def test_any_text_comes_back_from_csv_and_json(text, tmp_path):
    lines = [({"text": text}, PREDICTED), ({"text": "next"}, PREDICTED)]
    expected = [text.replace("\ud800", "\\ud800"), "next"]
    write(tmp_path / "out.csv", lines)
    assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == expected
    write(tmp_path / "out.jsonl", lines)
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_bytes().splitlines()] == expected
    write(tmp_path / "out.parquet", lines)
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist() == expected


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+49 30 123", "-rm", "@SUM(A1)", "\t=1", "\r=1", "\n+x", "=", "-", "-1,5", "-١", "+1e", '=A("x")', "-1_0"],
)  # fmt: skip
def test_no_cell_of_a_csv_is_a_formula(text, tmp_path):
    fields = {"prediction": text, "score": 0.5}
    write(tmp_path / "out.csv", [({"text": text, text: 1}, fields), ({text: text}, fields)])
    rows = read_csv(tmp_path / "out.csv")
    assert list(rows[0]) == ["row", "text", f"'{text}", "prediction", "score", "rest"]
    assert [row["text"] for row in rows] == [f"'{text}", ""]
    assert [row[f"'{text}"] for row in rows] == ["1", f"'{text}"]
    assert {row["prediction"] for row in rows} == {f"'{text}"}


@pytest.mark.parametrize("text", ["-1", "+1.5", "-.5e-3", "-12.", "a=b", "'=1", " =1", "1-2", "", "很=好"])
def test_numbers_and_other_texts_of_a_csv_stay(text, tmp_path):
    write(tmp_path / "out.csv", [({"text": text, "n": -3}, PREDICTED)])
    (row,) = read_csv(tmp_path / "out.csv")
    assert (row["text"], row["n"]) == (text, "-3")


def test_row_groups_of_different_types_share_one_schema(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_tables, "CHUNK", 2)
    monkeypatch.setattr(parquet_chunks, "ROW_GROUP", 2)
    columns = {
        "same": [1, 2, None, None, 3],
        "number": [1, 2, 1.5, None, 3],
        "mixed": [1, 2, "x", None, 3],
        "mixed_in_one": [1, "x", 3, None, [4]],
        "huge": [2**62 + 1, 2, 0.5, None, 3],
        "empty": [{}, {}, {}, {}, {}],
        "nothing": [None] * 5,
        "lists": [["a"], [], None, ["b", "c"], []],
    }
    lines = [({name: values[n] for name, values in columns.items()}, PREDICTED) for n in range(5)]
    lines[4][0]["late"] = "z"
    write(tmp_path / "out.parquet", lines)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 2, 1]
    table = file.read().to_pydict()
    for name in ("same", "number", "nothing", "lists"):
        assert table[name] == columns[name]
    for name in ("mixed", "mixed_in_one", "huge", "empty"):
        assert [None if cell is None else json.loads(cell) for cell in table[name]] == columns[name]
    assert table["late"] == [None] * 4 + ["z"]
    assert table["row"] == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_was_written_before_an_interruption_stays(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"

    def write_until_interrupted():
        with open_writer(str(path), False) as writer:
            writer.write(Line(1, {"text": "x"}, PREDICTED, None))
            assert suffix == ".parquet" or path.read_bytes().endswith(b"\n")  # at once, not at the end
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted()
    rows = {
        ".csv": read_csv,
        ".jsonl": lambda p: [json.loads(line) for line in p.open()],
        ".parquet": lambda p: pq.read_table(p).to_pylist(),
    }[suffix](path)
    assert [row["text"] for row in rows] == ["x"]
