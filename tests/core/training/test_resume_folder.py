"""``resume=`` finds, begins or finishes a run, and whoever reads a run never gets a mixture of two states of it."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gptask import UserError, load_run, train
from gptask.analysis.compare.records import read_run
from gptask.cli import main
from gptask.config.schemas import Evaluate, Files, Pretrained, TaskConfig
from gptask.data.cache import digest
from gptask.runs.leftovers import remove_earlier_start, require_unfinished_training
from gptask.runs.manifest import read_manifest
from gptask.runs.run import load_task
from gptask.runs.run_lock import run_lock
from gptask.runs.saved_model import locate_backbone
from gptask.training.evaluate import evaluate
from gptask.training.resume_folder import folder_to_resume
from gptask.training.train import train_tasks
from gptask_tasks.sentiment import Sentiment

from tests.core.training.test_resume_point import configure, outcome
from tests.support.run_folders import write_review_run

ONE_EPOCH = {"max_epochs": 1}


def state(folder: Path) -> dict[str, str]:
    """Every file of a folder with a digest of its content."""
    return {str(p.relative_to(folder)): digest(p.read_bytes().hex()) for p in folder.rglob("*") if p.is_file()}


def result(folder: Path) -> dict:
    """`outcome` with the fingerprint, by which the same command finds the run finished."""
    return outcome(folder) | {"fingerprint": json.loads((folder / "metrics.json").read_text())["fingerprint"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of one epoch that was not stopped."""
    return train(configure(tmp_path_factory.mktemp("whole"), ONE_EPOCH, folder="whole")).folder


@pytest.fixture(autouse=True, scope="module")
def _working_folder(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)


def auto(folder: Path, **changes):
    return configure(folder.parent, ONE_EPOCH, folder=str(folder), resume="auto", **changes)


class Killed(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def train_until(monkeypatch, config, name: str, call: int = 1):
    """Train, and end the process, as it were, when a file of this name is put in its place for the n-th time."""
    replaced, calls = Path.replace, []

    def replace_or_stop(self, target):
        if Path(target).name == name:
            calls.append(1)
            if len(calls) == call:
                raise Killed
        return replaced(self, target)

    with monkeypatch.context() as changed:
        changed.setattr(Path, "replace", replace_or_stop)
        with pytest.raises(Killed):
            train_tasks(config)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        pytest.param("config.yaml", 1, marks=pytest.mark.long),
        ("predictions.jsonl", 1),
        pytest.param("config.yaml", 2, marks=pytest.mark.long),
        pytest.param("README.md", 1, marks=pytest.mark.long),
        pytest.param("manifest.json", 1, marks=pytest.mark.long),
    ],
)
def test_auto_begins_goes_on_and_is_done(tmp_path, monkeypatch, whole, name, call):
    folder = tmp_path / "run"
    train_until(monkeypatch, auto(folder), name, call)
    assert not (folder / "manifest.json").exists()
    if name == "predictions.jsonl":
        (folder / "model.old").mkdir()  # of a kill between two moves
        (folder / f"{name}.part").touch()
    train(auto(folder))
    assert result(folder) == result(whole)
    assert not {"model.old", ".lock"} & {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("*.part"))
    finished = state(folder)
    assert train(auto(folder, probe=True)).metrics["n"] == 10  # probe has no part in the result
    assert state(folder) == finished


def test_a_training_killed_between_its_best_and_its_last_checkpoint_writes_the_last(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "killed")
    (folder / "manifest.json").unlink()
    (folder / "checkpoints/last.ckpt").unlink()
    train(auto(folder))
    assert {*state(folder / "checkpoints")} == {*state(whole / "checkpoints")}
    assert result(folder) == result(whole)
    assert train(replace(auto(folder), resume=str(folder), trainer={"max_epochs": 2})).folder == folder


def test_auto_takes_no_finished_run_of_other_options(tmp_path, whole):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = state(folder)
    with pytest.raises(UserError, match=r"not this one: seed is 13 in it and 5 now\..*another folder=.*resume="):
        train(auto(folder, seed=5))
    longer = replace(auto(folder), trainer=configure(tmp_path).trainer)
    with pytest.raises(UserError, match=r"trainer\.max_epochs is 1 in it and 2 now"):
        train(longer)
    with (folder / "predictions.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(UserError, match="is damaged"):
        train(auto(folder))
    assert state(folder).keys() == before.keys()
    with pytest.raises(UserError, match="resume=auto needs folder="):
        folder_to_resume(configure(tmp_path, resume="auto"))


def test_a_folder_that_is_no_runs_is_refused_and_stays(tmp_path):
    for file in ("letter.txt", "model/weights", "README.md"):
        (tmp_path / "mine" / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "mine" / file).write_text("mine")
    before = state(tmp_path / "mine")
    message = r"is no run folder, it holds README\.md, letter\.txt, model and no config\.yaml"
    for resume in ("auto", str(tmp_path / "mine")):
        with pytest.raises(UserError, match=message):
            train(replace(auto(tmp_path / "mine"), resume=resume))
    with pytest.raises(UserError, match=r"mine exists: choose another folder=$"):
        train(replace(auto(tmp_path / "mine"), resume=None))
    assert state(tmp_path / "mine") == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"resume=.*empty.*resume=auto"):
        train(replace(auto(tmp_path / "empty"), resume=None))
    with pytest.raises(UserError, match="no run folder at"):
        train(replace(auto(tmp_path / "none"), resume=str(tmp_path / "none"), folder=None))
    assert not (tmp_path / "none").exists()


def test_a_mistake_leaves_no_folder(tmp_path):
    missing = auto(tmp_path / "new" / "run", data=Files(train="nowhere.csv"))
    with pytest.raises(UserError):
        train(missing)
    assert not (tmp_path / "new").exists()


def test_the_lock_comes_before_anything_is_read(tmp_path, whole):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = state(folder)
    with run_lock(folder):
        for resume in ("auto", str(folder)):
            with pytest.raises(UserError, match="is in use: process"):
                train(replace(auto(folder), resume=resume))
        (folder / ".lock").unlink()
        assert state(folder) == before


@pytest.mark.long
def test_checkpoints_of_which_none_is_sound_are_set_aside_by_auto(tmp_path, whole, caplog):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "manifest.json").unlink()
    for file in (folder / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        train(replace(auto(folder), resume=str(folder)))
    with caplog.at_level(logging.WARNING, "gptask"):
        train(auto(folder))
    assert "begins anew, and what can't be read is set aside" in caplog.text
    assert len(list((folder / "checkpoints").glob("*.ckpt.damaged"))) == 2
    assert result(folder) == result(whole)


def test_what_an_earlier_start_left_goes_but_nothing_outside_of_it(tmp_path, whole, monkeypatch):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    outside = tmp_path / "outside"
    (outside / "model").mkdir(parents=True)
    (outside / "letter").touch()
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").symlink_to(outside)
    (folder / "mood").symlink_to(outside)
    (folder / "notes.txt").touch()
    tasks = {"mood": {}, "../outside": {}, "..": {}}
    monkeypatch.setattr("gptask.runs.leftovers.read_config", lambda folder: {"tasks": tasks})  # which would refuse them
    remove_earlier_start(folder)
    assert {p.name for p in folder.iterdir()} == {"train.log", "notes.txt", "checkpoints", "mood"}
    assert {p.name for p in outside.iterdir()} == {"model", "letter"}


def test_a_folder_with_nothing_but_checkpoints_that_were_set_aside_is_begun_in(tmp_path):
    """A loss of power while a training begins anew leaves them without a config.yaml."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt.damaged").touch()
    require_unfinished_training(tmp_path)
    (tmp_path / "checkpoints/mine.pt").touch()
    with pytest.raises(UserError, match=r"holds checkpoints and no config\.yaml"):
        require_unfinished_training(tmp_path)


READERS = {
    "load_run": load_run,
    "evaluate": lambda folder: main(["evaluate", f"run={folder}"]),
    "predict": lambda folder: main(["predict", f"run={folder}", "input=-"]),
    "export": lambda folder: main(["export", f"run={folder}", "output=exported"]),
    "serve": lambda folder: main(["serve", f"runs=[{folder}]", "check=true"]),
    "chat": lambda folder: main(["chat", str(folder)]),
    "backbone": lambda folder: locate_backbone(Pretrained(source=str(folder))),
    "compare": lambda folder: main(["compare", str(folder), str(folder)]),
    "report": lambda folder: main(["report", str(folder)]),
}


@pytest.mark.parametrize(
    "name",
    [
        "predictions.jsonl",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("config.yaml", "backbone.json", "metrics.json")),
    ],
)
def test_no_reader_takes_a_finished_run_that_was_continued_and_killed(tmp_path, monkeypatch, capsys, whole, name):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    longer = configure(tmp_path, resume=str(folder))
    train_until(monkeypatch, longer, name)
    assert not (folder / "manifest.json").exists()
    readers = READERS if name == "predictions.jsonl" else {"load_run": load_run}
    for reader, read in readers.items():
        with pytest.raises((UserError, SystemExit)) as refusal:
            read(folder)
        message = f"{refusal.value} {capsys.readouterr().err}"
        assert refusal.type is UserError or refusal.value.code == 2, reader
        assert "unfinished" in message, reader
        assert f"gptask train resume={folder}" in message, reader
    assert read_run(folder).problem.startswith("unfinished")
    train(longer)
    straight = Path(shutil.copytree(whole, tmp_path / "straight"))
    train(replace(longer, resume=str(straight)))
    assert result(folder) == result(straight)


@pytest.mark.long
def test_the_manifests_of_tasks_go_first_too(tmp_path, monkeypatch):
    tasks = {name: TaskConfig(Sentiment(), configure(tmp_path).data) for name in ("mood", "tone")}
    config = configure(tmp_path, ONE_EPOCH, task=None, data=None, tasks=tasks, folder=str(tmp_path / "run"))
    train_tasks(config)
    longer = replace(config, folder=None, resume=str(tmp_path / "run"), trainer=configure(tmp_path).trainer)
    train_until(monkeypatch, longer, "config.yaml")
    assert not list((tmp_path / "run").rglob("manifest.json"))
    assert "finish it with" in read_run(tmp_path / "run" / "mood").problem


def test_the_manifest_is_on_the_disk_after_the_files_it_names(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    folder = write_review_run(tmp_path / "run")
    manifest = synced.index(str(folder / "manifest.json.part"))
    files = {str(folder / name) for name in read_manifest(folder).files}
    assert files | {str(folder)} <= {*synced[:manifest]}
    assert synced[-1] == str(folder)


def test_an_evaluation_begins_no_training(tmp_path, whole):
    folder = tmp_path / "evaluation"
    evaluate(Evaluate(task=load_task(whole), run=str(whole), folder=str(folder), data=configure(tmp_path).data))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="is an evaluation"):
        train(auto(folder))
