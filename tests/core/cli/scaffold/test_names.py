"""Which names a new task can have; a refusal says what has the name, and what to take instead."""

import sys

import pytest
from gptask import UserError
from gptask.cli.scaffold.names import check


@pytest.mark.parametrize("name", ["toxicity", "hate_speech", "f1", "match"])
def test_free_names(name):
    check(name)


@pytest.mark.parametrize(
    ("name", "mended"),
    [
        ("Toxicity", "toxicity"),
        ("hate-speech", "hate_speech"),
        ("HateSpeech", "hate_speech"),
        ("hate speech", "hate_speech"),
        ("_x", "x"),
        ("a__b", "a_b"),
        ("2nd", None),
        ("毒性", None),
        ("", None),
        ("../x", "x"),
        ("x\n", "x"),
    ],
)
def test_no_names(name, mended):
    with pytest.raises(UserError, match="lower-case letters") as told:
        check(name)
    assert ("Did you mean" in str(told.value)) == (mended is not None)
    assert mended is None or f"Did you mean '{mended}'?" in str(told.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("class", "a keyword of Python"),
        ("null", "task=null is no text"),
        ("sentiment", r"a task of that name is installed \(gptask\)"),
        ("json", "hide Python's own"),
        ("tests", "a folder tests/ for something else"),
        ("numpy", r"hide the one in .*numpy"),
        ("gptask", r"hide the one in .*gptask"),
    ],
)
def test_taken_names(name, why):
    with pytest.raises(UserError, match=rf"'{name}' can't name a new task: .*{why}.*; choose another, such as"):
        check(name)


def test_a_broken_plugin_and_one_that_is_hidden_have_their_names_too(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_PLUGINS", "gptask")
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "bad_tasks-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-tasks\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gptask.tasks]\nbroken = nowhere_at_all:Task\n")
    with pytest.raises(UserError, match=r"installed \(bad-tasks\)"):
        check("broken")


def test_a_folder_on_the_path_without_code_is_a_module_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spaced").mkdir()
    with pytest.raises(UserError, match=r"hide the one in .*spaced"):
        check("spaced")
    assert "spaced" not in sys.modules
