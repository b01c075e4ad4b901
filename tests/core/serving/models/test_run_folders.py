"""Names of runs, run folders below a root, and what shows that a folder has changed."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from gptask import UserError
from gptask.serving.models.run_folders import (
    RunFolder,
    files_state,
    folders_below,
    manifest_digest,
    manifest_state,
    named_folders,
    refuse_equal_names,
)


def names(*texts: str) -> list[str]:
    return [run.name for run in named_folders(list(texts))]


def run_folder(path: Path, text: str = "{}") -> Path:
    (path / "model").mkdir(parents=True)
    (path / "config.yaml").write_text("seed: 1")
    (path / "model" / "weights").write_text("12345")
    (path / "manifest.json").write_text(text)
    return path


def test_a_run_is_called_like_its_folder_or_by_what_stands_before_the_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert names("outputs/qa/a", "outputs/qa/b/", "news:outputs/x", "2024-01-01_10-00-00") == [
        "a", "b", "news", "2024-01-01_10-00-00",
    ]  # fmt: skip
    assert named_folders("news:outputs/x") == [RunFolder("news", Path("outputs/x"), True)]
    assert named_folders("news:odd:folder") == [RunFolder("news", Path("odd:folder"), True)]
    assert named_folders(None) == named_folders([]) == []
    assert named_folders(["~/a"]) == [RunFolder("a", Path.home() / "a", True)]
    assert names("sub/..") == [tmp_path.name]


def test_an_existing_folder_with_a_colon_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "a:b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"'a:b' can't be the name of .*runs='\[a-b:outputs/a:b\]'"):
        named_folders(["outputs/a:b"])
    assert named_folders(["x:outputs/a:b"]) == [RunFolder("x", Path("outputs/a:b"), True)]


@pytest.mark.parametrize("text", ["outputs/my run", "outputs/été", ":outputs/a", "a/b:outputs/c", "..x:a", "a+b"])
def test_a_name_that_is_none_for_a_url_is_refused_with_the_way_out(text):
    with pytest.raises(UserError, match=r"can't be the name of .*runs='\[[\w.-]+:.*\]'"):
        named_folders([text])


@pytest.mark.parametrize("runs", [{"a": "b"}, 3.5, [None], [["a"]]])
def test_anything_but_texts_is_refused(runs):
    with pytest.raises(UserError, match="expected a run folder or a list of them"):
        named_folders(runs)


def test_equal_names_are_refused_and_the_message_names_them(tmp_path):
    def refuse(*texts):
        refuse_equal_names((run.name, run) for run in named_folders(list(texts)))

    refuse("outputs/sentiment/a", "outputs/qa/b", "a2:outputs/qa/a")
    with pytest.raises(UserError, match=r"both called 'a'.*\[sentiment-a:outputs/sentiment/a, qa-a:outputs/qa/a\]"):
        refuse("outputs/sentiment/a", "outputs/qa/a")
    with pytest.raises(UserError, match=r"\[1-a:x/a, 2-a:y/x/a\]"):
        refuse("x/a", "y/x/a")


def test_runs_are_found_at_both_depths_and_not_within_runs(tmp_path):
    run_folder(tmp_path / "b")
    run_folder(tmp_path / "b" / "task")  # one of the tasks of a run
    run_folder(tmp_path / "qa" / "a")
    (tmp_path / "qa" / "unfinished").mkdir()
    (tmp_path / "qa" / "unfinished" / "config.yaml").touch()
    run_folder(tmp_path / ".hidden")
    run_folder(tmp_path / "too" / "deep" / "c")
    (tmp_path / "a file").touch()
    assert [run.name for run in folders_below(tmp_path)] == ["b", "a", "unfinished"]
    with pytest.raises(UserError, match=r"^runs_root=.*missing: No such file or directory"):
        folders_below(tmp_path / "missing")


def test_a_folder_that_is_not_ours_to_read_hides_no_run():
    with tempfile.TemporaryDirectory() as name:  # tmp_path's parents are closed to others
        root = Path(name)
        root.chmod(0o755)
        run_folder(root / "a")
        (root / "lost+found").mkdir()
        (root / "lost+found").chmod(0)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may read everything
        try:
            assert [run.name for run in folders_below(root)] == ["a"]
        finally:
            os.seteuid(user)
            (root / "lost+found").chmod(0o700)


def test_a_manifest_of_the_same_size_and_time_is_noticed(tmp_path):
    folder = run_folder(tmp_path / "a", '{"a": 1}')
    before, digest, stat = manifest_state(folder), manifest_digest(folder), (folder / "manifest.json").stat()
    assert manifest_state(folder) == before
    (folder / "manifest.json").write_text('{"a": 2}')
    os.utime(folder / "manifest.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (folder / "manifest.json").stat().st_mtime_ns == stat.st_mtime_ns
    assert manifest_state(folder) != before
    assert manifest_digest(folder) != digest


def test_the_state_of_the_files_covers_the_model_and_the_tasks(tmp_path):
    folder = run_folder(tmp_path / "a")
    task = run_folder(folder / "mood")
    shutil.rmtree(task / "model")
    states = [files_state(folder)]
    for file in ("model/weights", "config.yaml", "mood/config.yaml", "mood/manifest.json"):
        other = folder / "other"
        other.write_text((folder / file).read_text())
        other.replace(folder / file)
        states.append(files_state(folder))
    assert len({*states}) == len(states)
    assert files_state(tmp_path / "missing") == manifest_state(tmp_path / "missing") == ()
    assert any("a/model/weights" in path for path, *_ in files_state(task))  # a task alone has its run's model
    (folder / "manifest.json").unlink()
    assert manifest_state(folder) == ()  # unfinished, whatever its tasks have
