"""A run loaded from its folder: its task and options, and what is refused."""

import shutil

import pytest
from gptask import UserError, load_run
from gptask.config.schemas import HeadOnly
from gptask.model.heads import GenerationHead
from gptask.runs.config_file import read_config
from gptask.runs.run import task_from_config
from gptask_tasks.sentiment import Sentiment

from tests.support.run_folders import seal

LABELS = ["negative", "positive"]


def test_a_class_without_entry_point_is_loaded_by_naming_it(random_run):
    class Own(Sentiment):
        """A task that no plugin announces."""

    run = random_run(Own(labels=LABELS), "llama", HeadOnly())
    with pytest.raises(UserError, match="own"):
        load_run(run.folder)
    assert isinstance(load_run(run.folder, Own).head, type(run.head))
    assert not isinstance(run.head, GenerationHead)


def test_task_options_are_typed_when_loaded(lora_run):
    values = read_config(lora_run.folder)
    assert task_from_config(values)[1] == Sentiment(labels=LABELS)
    values["task"]["threshold"] = "high"
    with pytest.raises(UserError, match="don't fit"):
        task_from_config(values)


def test_a_folder_without_a_model_is_refused(run_copy):
    shutil.rmtree(run_copy / "model")
    with pytest.raises(UserError, match=r"is damaged, by its manifest.json: model/\S+ is missing"):
        load_run(run_copy)
    with pytest.raises(UserError, match="holds no model: it is an evaluation"):
        load_run(seal(run_copy))
