"""A file is written completely or left as it was."""

import json
import math
from pathlib import Path

import pytest
from gptask.runs.atomic_write import json_text, write_json, write_text


def test_a_failing_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    write_json(file, {"text": "很好"})
    assert file.read_text(encoding="utf-8") == '{\n  "text": "很好"\n}\n'

    def disk_full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "something else")
    assert "很好" in file.read_text(encoding="utf-8")


def test_json_has_null_for_what_is_no_finite_number():
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], 3: "nan", "d": True, "e": None}
    assert json_text(value) == '{"a": null, "b": [1.5, null, {"c": [null, 2]}], "3": "nan", "d": true, "e": null}'
    assert json.loads(json_text(value, indent=2))["b"][2]["c"] == [None, 2]


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "old"
