"""A run's folder: never reused, removed if nothing was written, found by the other processes."""

import logging
import os

import pytest
from gptask import UserError
from gptask.runs.folder import create_run_folder, is_main_process, open_run_folder, resume_hint


def test_a_run_folder_is_never_reused(tmp_path):
    first = create_run_folder(str(tmp_path), "qa", None)
    second = create_run_folder(str(tmp_path), "qa", None)
    assert first != second
    assert first.parent == second.parent == tmp_path / "qa"
    with pytest.raises(UserError, match="exists"):
        create_run_folder(str(tmp_path), "qa", str(first))


def test_a_run_folder_that_cannot_be_created_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't create the run folder .*Not a directory; set outputs=<folder>"):
        create_run_folder(str(tmp_path / "file"), "qa", None)


def test_a_folder_with_nothing_but_its_log_is_removed(tmp_path):
    with open_run_folder(str(tmp_path), "qa", None) as empty:
        assert (empty / "train.log").is_file()
    assert not empty.exists()
    with open_run_folder(str(tmp_path), "qa", None) as folder:
        (folder / "config.yaml").write_text("")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "train.log"}


def test_the_folders_made_for_an_empty_one_are_removed_with_it(tmp_path):
    for outputs, folder in ((f"{tmp_path}/new/outputs", None), ("", f"{tmp_path}/new/a/b")):
        with open_run_folder(outputs, "qa", folder):
            assert (tmp_path / "new").is_dir()
        assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with open_run_folder(str(tmp_path / "mine"), "qa", None):
        (tmp_path / "mine/qa/other").mkdir()  # another run begins
    assert [path.name for path in (tmp_path / "mine/qa").iterdir()] == ["other"]
    with open_run_folder(str(tmp_path / "mine"), "sst", None):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["qa"]


def test_the_log_of_a_run_lies_in_its_folder(tmp_path, monkeypatch):
    log = logging.getLogger("gptask")
    monkeypatch.setattr(log, "level", logging.INFO)
    with open_run_folder(str(tmp_path), "qa", None) as folder:
        log.warning("a warning")
        (folder / "config.yaml").write_text("")
    log.warning("after the run")
    assert "WARNING a warning" in (folder / "train.log").read_text()
    assert "after the run" not in (folder / "train.log").read_text()


def test_a_full_disk_is_a_user_error_with_a_way_to_resume(tmp_path):
    folder = tmp_path / "run"
    message = r"No space left on device while writing .*No checkpoint has been written yet"
    with pytest.raises(UserError, match=message), open_run_folder("", "qa", str(folder)):
        raise OSError(28, "No space left on device")


def test_other_processes_use_the_folder_of_the_main_one(tmp_path, monkeypatch):
    with open_run_folder(str(tmp_path), "qa", None) as folder:
        assert os.environ["GPTASK_RUN_FOLDER"] == str(folder)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert not is_main_process()
        with open_run_folder(str(tmp_path), "qa", None) as same:
            assert same == folder
    with pytest.raises(UserError, match="set folder=<folder>"), open_run_folder(str(tmp_path), "qa", None):
        pass
    with open_run_folder(str(tmp_path), "qa", str(tmp_path / "named")) as named:
        assert named == tmp_path / "named"


def test_the_hint_names_checkpoints_and_the_command_that_resumes(tmp_path):
    assert resume_hint(tmp_path) == "No checkpoint has been written yet: the same command begins again."
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "checkpoints" / name).write_text("")
    assert resume_hint(tmp_path) == (
        f"Checkpoints in {tmp_path}/checkpoints: best.ckpt, last.ckpt. Resume with: gptask train resume={tmp_path}"
    )


def test_a_log_that_can_not_be_written_is_said_once_and_the_run_goes_on(tmp_path, caplog, capsys):
    log = logging.getLogger("gptask")
    with open_run_folder(str(tmp_path), "qa", None) as folder:
        (handler,) = (handler for handler in log.handlers if isinstance(handler, logging.FileHandler))
        handler.stream = open("/dev/full", "w")  # noqa: SIM115
        for number in range(3):
            log.warning("line %d", number)
        (folder / "config.yaml").write_text("")
    assert [line for line in caplog.messages if "goes on without its log" in line] == [
        f"No space left on device while writing {folder}/train.log: the run goes on without its log"
    ]
    assert not capsys.readouterr().err, "no stack trace of the logging module"


def test_a_text_that_is_no_utf8_is_logged(tmp_path):
    log = logging.getLogger("gptask")
    with open_run_folder(str(tmp_path), "qa", None) as folder:
        log.warning("half a pair: %s", "\ud800")
        (folder / "config.yaml").write_text("")
    assert "half a pair: \\ud800" in (folder / "train.log").read_text()
