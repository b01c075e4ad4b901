"""What makes two runs the same job, and where a finished one is found."""

import dataclasses
import json
import shutil

import pytest
from gptask import UserError, train
from gptask.config.schemas import Evaluate, Files, Full, Limit, Pretrained, Sample, TensorBoardLog
from gptask.runs.atomic_write import write_json
from gptask.training import fingerprint as job
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config


@pytest.fixture
def files(tmp_path):
    """Data of one's own, to be changed."""
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "good", "label": "positive"}\n')
    (tmp_path / "labels.txt").write_text("positive\nnegative\n")
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}


def test_what_does_not_decide_the_result_is_left_out(tmp_path):
    plain = job.run_fingerprint(small_config(tmp_path))
    aside = {"outputs": "x", "folder": "y", "resume": "z", "probe": True, "logger": TensorBoardLog()}
    assert {f.name for f in dataclasses.fields(small_config(tmp_path))} >= set(job.NOT_DECISIVE) == set(aside)
    assert job.run_fingerprint(dataclasses.replace(small_config(tmp_path), **aside)) == plain
    options = {"accelerator": "cpu", "accumulate_grad_batches": 1, "max_epochs": 2}
    assert job.run_fingerprint(small_config(tmp_path, trainer=options)) == plain  # in another order


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 14},
        {"tuning": Full(lr=2e-3)},
        {"task": Sentiment(prompt="{text}:")},
        {"trainer": {"max_epochs": 3, "accelerator": "cpu", "accumulate_grad_batches": 1}},
        {"data": Sample(limit=Limit(train=23, validation=8, test=10), max_tokens=128, batch_size=8)},
    ],
)
def test_options_decide(change, tmp_path):
    assert job.run_fingerprint(small_config(tmp_path, **change)) != job.run_fingerprint(small_config(tmp_path))


def test_a_training_is_no_evaluation(tmp_path):
    assert job.run_fingerprint(Evaluate(task=Sentiment(), data=Sample())) != job.run_fingerprint(
        small_config(tmp_path, data=Sample())
    )


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "labels.txt"])
def test_the_content_of_files_decides(name, files, tmp_path):
    options = small_config(tmp_path, data=Files(**files, labels=str(tmp_path / "labels.txt")))
    before = job.run_fingerprint(options)
    assert job.run_fingerprint(options) == before
    (tmp_path / name).write_text((tmp_path / name).read_text() + '{"text": "bad", "label": "negative"}\n')
    assert job.run_fingerprint(options) != before


def test_the_weights_of_a_local_model_decide(tiny_model, tmp_path):
    options = small_config(tmp_path, backbone=Pretrained(source=str(tmp_path / "model")))
    found = []
    for seed in (0, 1):
        shutil.copytree(tiny_model("gpt2", seed=seed), tmp_path / "model", dirs_exist_ok=True)
        found.append(job.run_fingerprint(options))
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["git_commit", "code_hash"])
def test_the_code_decides(name, tmp_path, monkeypatch):
    before = job.run_fingerprint(small_config(tmp_path))
    monkeypatch.setattr(job, name, lambda *_, **__: "other")
    assert job.run_fingerprint(small_config(tmp_path)) != before


def test_missing_data_is_told_as_the_run_would(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        job.run_fingerprint(small_config(tmp_path, data=Files(train="nowhere.csv")))


def test_a_training_writes_the_job_it_was_given(tmp_path):
    options = small_config(tmp_path, trainer={"max_steps": 1, "accelerator": "cpu"})  # the labels are left open
    given = job.run_fingerprint(options)
    ended = train(options)
    assert ended.metrics["job"] == given
    settled = small_config(tmp_path, task=ended.task, trainer=options.trainer)
    assert job.run_fingerprint(settled) != given
    assert job.find_finished(given, job.candidate_folders(options), model=True) == ended.folder
    assert job.find_finished(job.run_fingerprint(settled), job.candidate_folders(options), model=True) is None
    shutil.rmtree(ended.folder / "model")
    assert job.find_finished(given, job.candidate_folders(options), model=True) is None
    assert job.find_finished(given, job.candidate_folders(options), model=False) == ended.folder


def test_a_folder_of_ones_own_is_looked_for_with_those_beside_it(tmp_path):
    options = small_config(tmp_path, folder=str(tmp_path / "mine"))
    assert job.candidate_folders(options) == []
    for name in ("mine", "mine_1", "mine_2", "minerva"):
        (tmp_path / name).mkdir()
    assert [path.name for path in job.candidate_folders(options)] == ["mine", "mine_1", "mine_2"]
    write_json(tmp_path / "mine_2" / "metrics.json", {"job": "abc"})
    (tmp_path / "mine_1" / "metrics.json").write_bytes(b"\xff damaged")
    assert job.find_finished("abc", job.candidate_folders(options), model=False) == tmp_path / "mine_2"
    assert json.loads((tmp_path / "mine_2" / "metrics.json").read_text())["job"] == "abc"
