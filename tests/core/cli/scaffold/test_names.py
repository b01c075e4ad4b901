"""Names of new tasks: a refusal says what uses the name, and suggests another."""

import sys

import pytest
from gptask import UserError
from gptask.cli.scaffold.names import check_task_name


@pytest.mark.parametrize("name", ["toxicity", "hate_speech", "f1", "match"])
def test_a_free_name_is_accepted(name):
    check_task_name(name)


@pytest.mark.parametrize(
    ("name", "suggestion"),
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
def test_a_name_of_the_wrong_form_is_refused_with_a_suggestion(name, suggestion):
    with pytest.raises(UserError, match="lower-case letters") as error:
        check_task_name(name)
    assert ("Did you mean" in str(error.value)) == (suggestion is not None)
    assert suggestion is None or f"Did you mean '{suggestion}'?" in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
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
def test_a_name_in_use_is_refused_with_the_reason(name, reason):
    with pytest.raises(UserError, match=rf"'{name}' can't name a new task: .*{reason}.*; choose another, such as"):
        check_task_name(name)


def test_the_names_of_broken_and_hidden_plugins_are_in_use(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_PLUGINS", "gptask")
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "bad_tasks-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-tasks\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gptask.tasks]\nbroken = nowhere_at_all:Task\n")
    with pytest.raises(UserError, match=r"installed \(bad-tasks\)"):
        check_task_name("broken")


def test_a_folder_without_code_on_the_path_counts_as_a_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spaced").mkdir()
    with pytest.raises(UserError, match=r"hide the one in .*spaced"):
        check_task_name("spaced")
    assert "spaced" not in sys.modules
