"""YAML from elsewhere has no aliases and no deep nesting, and is read as plain values."""

import os
from pathlib import Path

import pytest
import yaml
from gptask.config import yaml_text
from gptask.config.yaml_text import load_yaml, read_yaml
from gptask.errors import UserError


def test_plain_values_are_read() -> None:
    assert load_yaml("a: [1, yes, {b: null}]\nc: '*text & more'", "x") == {
        "a": [1, True, {"b": None}],
        "c": "*text & more",
    }
    assert load_yaml("[no, 1, null]", "x", texts_only=True) == ["no", "1", "null"]


@pytest.mark.parametrize("text", ["a: &x [1]\nb: *x", "<<: *x", "a: &x {b: *x}"])
def test_aliases_are_refused_with_their_line(text: str) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: line \d has a YAML alias \(\*x\)"):
        load_yaml(text, "mine.yaml")


@pytest.mark.parametrize("text", ["[" * 60, "{a: " * 60 + "}" * 60, "".join(" " * n + "a:\n" for n in range(60))])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"mine: line .* is nested deeper than 50 levels"):
        load_yaml(text, "mine")


def test_what_is_no_yaml_is_an_error_of_yaml() -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml("a: [", "x")
    with pytest.raises(yaml.YAMLError):
        load_yaml("[" * 1_000_000, "x")
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.system [true]", "x")


def test_too_much_text_is_refused_unread(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(yaml_text, "MAX_BYTES", 10)
    (tmp_path / "a.yaml").write_text("a: 1234567890")
    with pytest.raises(UserError, match=r"a\.yaml has 13 bytes, at most 10 are read"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"data\.labels has 13 characters"):
        load_yaml("a: 1234567890", "data.labels")


@pytest.mark.parametrize("kind", ["device", "pipe", "loop"])
def test_a_file_whose_reading_may_never_end_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    with pytest.raises(UserError, match=r"config\.yaml is no regular file"):
        read_yaml(file)
