"""`gptask evaluate`: run folders and the bare backbone."""

import hashlib
import json

import pytest
import yaml
from gptask import UserError, train
from gptask.config.schemas import Evaluate, Files, Limit, Sample
from gptask.model.backbone.scratch import train_tokenizer
from gptask.runs.config_file import read_config
from gptask.runs.manifest import read_manifest
from gptask.runs.run import task_from_config
from gptask.training.evaluate import demonstrations, evaluate
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.configs import small_config
from tests.support.tiny_models import TEXT

SAMPLE = Sample(limit=Limit(train=24, validation=8, test=10), max_tokens=128)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(small_config(tmp_path_factory.mktemp("outputs"), trainer={"max_steps": 1, "accelerator": "cpu"}))


def evaluated(tmp_path, **changes):
    options = {"task": Sentiment(), "data": SAMPLE, "outputs": str(tmp_path), "trainer": {"accelerator": "cpu"}}
    return evaluate(Evaluate(**(options | changes)))


def test_a_run_scores_the_same_again_and_names_its_parent(run, tmp_path):
    task = task_from_config(read_config(run.folder))[1]
    folder = evaluated(tmp_path, run=str(run.folder), task=task)
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("accuracy", "ece"):
        assert metrics["metrics"][name]["value"] == pytest.approx(run.metrics["metrics"][name]["value"], abs=1e-3)
    assert metrics["test_data_hash"] == run.metrics["test_data_hash"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["parent"] == str(run.folder)
    assert not (folder / "model").exists()
    manifest = read_manifest(folder)
    manifest.verify()
    parent_hash = hashlib.sha256((run.folder / "manifest.json").read_bytes()).hexdigest()
    assert (manifest.method, manifest.parent) == ("evaluate", {"folder": str(run.folder), "manifest": parent_hash})
    assert manifest.splits == {"test": read_manifest(run.folder).splits["test"]}


def test_another_split_and_another_file_can_be_scored(run, tmp_path, caplog):
    caplog.set_level("INFO", "gptask")
    task = task_from_config(read_config(run.folder))[1]
    (tmp_path / "mine.jsonl").write_text('{"text": "good", "label": "positive"}\n')
    folder = evaluated(tmp_path, run=str(run.folder), task=task, data=Files(test=str(tmp_path / "mine.jsonl")))
    assert json.loads((folder / "metrics.json").read_text())["n"] == 1
    assert "label: 1 class\n  label     test\n  positive     1" in caplog.messages
    folder = evaluated(tmp_path, run=str(run.folder), task=task, split="validation")
    assert json.loads((folder / "metrics.json").read_text())["n"] == 8
    assert any(text.startswith("label: 3 classes\n  label     validation\n") for text in caplog.messages)
    with pytest.raises(UserError, match="there are train, validation, test"):
        evaluated(tmp_path, run=str(run.folder), task=task, split="dev")


def test_the_folder_of_an_evaluation_cannot_be_loaded(run, tmp_path):
    from gptask import load_run

    folder = evaluated(tmp_path, run=str(run.folder), task=task_from_config(read_config(run.folder))[1])
    with pytest.raises(UserError, match=f"holds no model: it is an evaluation of {run.folder}, which holds one"):
        load_run(folder)


def test_shots_put_solved_examples_before_every_prompt():
    from gptask.training.builder import build_corpus

    task, tokenizer = Sentiment(), train_tokenizer([TEXT], 300)
    prompt_start = demonstrations(task, build_corpus(task, SAMPLE, 13), 2, 13, tokenizer)
    assert prompt_start.count("Review:") == prompt_start.count("Sentiment: ") == 2
    assert prompt_start.endswith("\n\n")
    assert demonstrations(task, build_corpus(task, SAMPLE, 13), 2, 13, tokenizer) == prompt_start
    task.demonstrations = prompt_start
    assert task.format_prompt({"text": "x"}) == "Review: x\nSentiment:"


def test_shots_are_refused_for_a_trained_run_a_negative_number_and_a_span_answer(run, tmp_path):
    with pytest.raises(UserError, match="bare backbone"):
        evaluated(tmp_path, run=str(run.folder), shots=2)
    with pytest.raises(UserError, match="must be 0 or more"):
        evaluated(tmp_path, shots=-1, backbone=small_config(tmp_path).backbone)
    with pytest.raises(UserError, match=r"shots are for task\.answer=generate"):
        evaluated(tmp_path, task=QuestionAnswering(answer="span"), shots=1, backbone=small_config(tmp_path).backbone)


def test_the_bare_backbone_is_scored_without_training(tmp_path):
    task = Translation()
    task.generation.max_new_tokens = 3
    folder = evaluated(tmp_path, task=task, shots=1, backbone=small_config(tmp_path).backbone)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == 10
    assert metrics["trainable_parameters"] == 0
    assert metrics["train_tokens_per_second"] is None
