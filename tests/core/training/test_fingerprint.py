"""What a run's fingerprint depends on, and where a finished run with it is found."""

import dataclasses
import shutil

import pytest
from gptask import UserError, train
from gptask.config.engine import Reference
from gptask.config.schemas import Checkpoint, Evaluate, Files, Full, Limit, Pretrained, Sample, TensorBoardLog
from gptask.runs.manifest import read_manifest, write_manifest
from gptask.training import fingerprint
from gptask.training.fingerprint import candidate_folders, find_finished, run_fingerprint
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config


@pytest.fixture
def files(tmp_path):
    """Local data files that a test may change."""
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "good", "label": "positive"}\n')
    (tmp_path / "labels.txt").write_text("positive\nnegative\n")
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}


def test_options_that_do_not_change_the_result_are_left_out(tmp_path):
    plain = run_fingerprint(small_config(tmp_path))
    ignored = {
        "outputs": "x",
        "folder": "y",
        "resume": "z",
        "probe": True,
        "baseline": True,
        "logger": TensorBoardLog(),
        "checkpoint": Checkpoint(minutes=None),
        "engine": Reference(),
    }
    assert {f.name for f in dataclasses.fields(small_config(tmp_path))} >= set(fingerprint.NOT_DECISIVE) == set(ignored)
    assert run_fingerprint(dataclasses.replace(small_config(tmp_path), **ignored)) == plain
    options = {"accelerator": "cpu", "accumulate_grad_batches": 1, "max_epochs": 2}
    assert run_fingerprint(small_config(tmp_path, trainer=options)) == plain  # in another order


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
def test_the_fingerprint_depends_on_options(change, tmp_path):
    assert run_fingerprint(small_config(tmp_path, **change)) != run_fingerprint(small_config(tmp_path))


def test_a_training_and_an_evaluation_have_different_fingerprints(tmp_path):
    assert run_fingerprint(Evaluate(task=Sentiment(), data=Sample())) != run_fingerprint(
        small_config(tmp_path, data=Sample())
    )


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "labels.txt"])
def test_the_fingerprint_depends_on_the_content_of_files(name, files, tmp_path):
    options = small_config(tmp_path, data=Files(**files, labels=str(tmp_path / "labels.txt")))
    before = run_fingerprint(options)
    assert run_fingerprint(options) == before
    (tmp_path / name).write_text((tmp_path / name).read_text() + '{"text": "bad", "label": "negative"}\n')
    assert run_fingerprint(options) != before


def test_the_fingerprint_depends_on_the_weights_of_a_local_model(tiny_model, tmp_path):
    options = small_config(tmp_path, backbone=Pretrained(source=str(tmp_path / "model")))
    fingerprints = []
    for seed in (0, 1):
        shutil.copytree(tiny_model("gpt2", seed=seed), tmp_path / "model", dirs_exist_ok=True)
        fingerprints.append(run_fingerprint(options))
    assert fingerprints[0] != fingerprints[1]


def test_the_fingerprint_depends_on_the_code(tmp_path, monkeypatch):
    before = run_fingerprint(small_config(tmp_path))
    monkeypatch.setattr(fingerprint, "code_hash", lambda *_, **__: "other")
    assert run_fingerprint(small_config(tmp_path)) != before


def test_missing_data_is_an_error_as_in_the_run_itself(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        run_fingerprint(small_config(tmp_path, data=Files(train="nowhere.csv")))


def test_a_training_writes_the_fingerprint_of_its_config_as_given(tmp_path, caplog):
    options = small_config(tmp_path, trainer={"max_steps": 1, "accelerator": "cpu"})  # the labels come from the data
    expected = run_fingerprint(options)
    run = train(options)
    assert run.metrics["fingerprint"] == expected
    resolved = small_config(tmp_path, task=run.task, trainer=options.trainer)
    assert run_fingerprint(resolved) != expected
    assert read_manifest(run.folder).fingerprint == expected
    assert find_finished(expected, candidate_folders(options)) == run.folder
    assert find_finished(run_fingerprint(resolved), candidate_folders(options)) is None
    shutil.rmtree(run.folder / "model")
    with caplog.at_level("WARNING", "gptask"):
        assert find_finished(expected, candidate_folders(options)) is None
    assert f"not taken as finished: {run.folder} is damaged" in caplog.text


def test_a_folder_from_the_config_is_searched_with_its_numbered_alternatives(tmp_path):
    options = small_config(tmp_path, folder=str(tmp_path / "mine"))
    assert candidate_folders(options) == []
    for name in ("mine", "mine_1", "mine_2", "minerva"):
        (tmp_path / name).mkdir()
    assert [path.name for path in candidate_folders(options)] == ["mine", "mine_1", "mine_2"]
    write_manifest(tmp_path / "mine_2", "abc", "train", {})
    (tmp_path / "mine_1" / "manifest.json").write_bytes(b"\xff damaged")
    assert find_finished("abc", candidate_folders(options)) == tmp_path / "mine_2"
