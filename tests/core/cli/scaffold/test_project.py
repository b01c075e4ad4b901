"""The written package: short, well formed, within the contract, and never written over other files."""

import importlib
import subprocess
import sys
import tomllib

import pytest
from gptask import UserError
from gptask.cli.scaffold.project import ProjectKind, write_project
from gptask.testing import check_task


@pytest.fixture
def written(tmp_path, monkeypatch):
    """``written("hate_speech", kind)``: the package's folder, importable."""
    names = []

    def call(name, kind):
        names.append(name)
        write_project(name, tmp_path / "package", kind)
        monkeypatch.syspath_prepend(tmp_path / "package")
        return tmp_path / "package"

    yield call
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ProjectKind)
def test_the_task_keeps_the_contract_and_is_short(written, kind):
    folder = written("hate_speech", kind)
    module = importlib.import_module("hate_speech")
    assert "overfits_one_batch" in check_task(module.HateSpeechTask)
    assert len((folder / "hate_speech/__init__.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("kind", ProjectKind)
def test_the_packages_tests_pass(written, kind):
    folder = written("hate_speech", kind)
    space = {}
    exec((folder / "tests/test_hate_speech.py").read_text(), space)
    tests = [name for name in space if name.startswith("test_") and name != "test_contract"]
    assert tests
    for name in tests:
        space[name]()


@pytest.mark.parametrize("kind", ProjectKind)
def test_no_template_syntax_is_left_and_ruff_is_satisfied(written, kind):
    folder = written("hate_speech", kind)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text()
        assert "{%" not in text
        assert "{{" not in text
        assert "NAME" not in f"{path}{text}"
        assert path.suffix != ".j2"
    linter = [sys.executable, "-m", "ruff"]
    for command in (["check", "--select=E,F,I,UP"], ["format", "--check"]):
        place = ["--isolated", "--no-cache", "--line-length=120", "."]
        ended = subprocess.run([*linter, *command, *place], cwd=folder, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_entry_point_names_the_class(written):
    folder = written("hate_speech", ProjectKind.classification)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["entry-points"] == {"gptask.tasks": {"hate_speech": "hate_speech:HateSpeechTask"}}
    assert project["project"]["name"] == "gptask-hate-speech"
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["hate_speech"]


def test_an_empty_folder_is_filled_and_a_full_one_left_unchanged(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert all(path.is_file() for path in write_project("fresh", empty))
    before = {path: path.stat().st_mtime_ns for path in empty.rglob("*")}
    with pytest.raises(UserError, match="exists and is not an empty folder; nothing was written"):
        write_project("other", empty)
    assert {path: path.stat().st_mtime_ns for path in empty.rglob("*")} == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        write_project("fresh", tmp_path / "file")
    with pytest.raises(UserError, match="can't be written: Not a directory; name another folder"):
        write_project("fresh", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_in_use_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="installed"):
        write_project("sentiment", tmp_path / "new")
    assert not (tmp_path / "new").exists()
