"""Lines of predictions: whole ones, in any encoding, JSON that every reader takes."""

import errno
import io
import json
import math

import pytest
from gptask.runs.predict_file import open_writer
from gptask.runs.prediction_lines import Line, WholeLines, as_json


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    class SmallDisk(io.FileIO):
        def write(self, data):
            room = 10 - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:room])

    with SmallDisk(tmp_path / "out", "wb") as stream:
        lines = WholeLines(stream)
        lines.write(b"12345\n")
        with pytest.raises(OSError, match="No space"):
            lines.write(b"67890\n")
    assert (tmp_path / "out").read_text() == "12345\n"


@pytest.mark.parametrize(("encoding", "escaped"), [("utf-8", False), ("ascii", True), ("cp1252", True)])
def test_standard_output_is_json_in_any_encoding(encoding, escaped, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding=encoding))
    with open_writer("-", with_errors=False) as writer:
        writer.write(Line(1, {"text": "é 很好"}, {"prediction": "good"}, None))
    assert json.loads(buffer.getvalue().decode("utf-8"))["text"] == "é 很好"
    assert (b"\\u" in buffer.getvalue()) == escaped


def test_json_holds_no_number_that_json_lacks():
    assert as_json({"a": math.nan, "b": [math.inf], "c": b"x\xff"}) == '{"a": null, "b": [null], "c": "x\\\\xff"}'


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_half_a_surrogate_pair_in_a_column_name_or_a_cell_is_its_number(suffix, tmp_path):
    file = tmp_path / f"out{suffix}"
    with open_writer(str(file), with_errors=True) as writer:
        writer.write(Line(1, {"a\udcff": "b\udcff", "c": [{"d\udcff": 1}]}, {"prediction": "good"}, None))
    content = file.read_bytes()
    assert rb"a\udcff" in content.replace(rb"\\", b"\\")
    assert rb"b\udcff" in content.replace(rb"\\", b"\\")
