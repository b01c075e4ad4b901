"""A training that was interrupted keeps its checkpoints and resumes from them."""

import dataclasses
import errno
import logging
import os
import shutil
import signal
import threading

import pytest
import torch
from gptask import UserError, load_run, train
from gptask.analysis.compare.records import read_run
from gptask.config.schemas import EarlyStopping
from gptask.runs.config_file import read_config
from gptask.runs.folder import resume_hint
from gptask.runs.manifest import read_manifest
from gptask.training.module import GPTModule
from gptask.training.task_runtime import TaskRuntime
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config
from tests.support.run_folders import write_review_run

SCORES = TaskRuntime.validation_scores


def validation_values(monkeypatch, *values):
    """Let the main metric of validation take these values, one after another."""
    remaining = iter(values)

    def planned(self):
        for number, (metric, value) in enumerate(SCORES(self)):
            yield metric, next(remaining) if number == 0 else value

    monkeypatch.setattr(TaskRuntime, "validation_scores", planned)


def test_a_moved_run_keeps_its_best_checkpoint(tmp_path, monkeypatch, caplog):
    validation_values(monkeypatch, 10.0, 90.0, 20.0)
    first = train(small_config(tmp_path / "before", folder=str(tmp_path / "before/run")))
    best = {path.name: path.read_bytes() for path in (first.folder / "checkpoints").glob("best-*.ckpt")}
    metrics, moved = first.metrics["metrics"], tmp_path / "after" / "moved"
    shutil.copytree(first.folder, moved)  # times of files differ from the run's
    shutil.rmtree(tmp_path / "before")
    for path in (moved / "checkpoints").glob("best-*.ckpt"):
        os.utime(path)
    longer = {"max_epochs": 3, "accelerator": "cpu", "accumulate_grad_batches": 1}
    with caplog.at_level(logging.INFO, "gptask"):
        again = train(small_config(tmp_path / "after", resume=str(moved), trainer=longer))
    assert "best checkpoint: best-epoch=1-step=6.ckpt (val/accuracy 90.0000)" in caplog.text
    assert {path.name: path.read_bytes() for path in (moved / "checkpoints").glob("best-*.ckpt")} == best
    assert again.metrics["metrics"] == metrics


def test_weights_behind_the_last_full_epoch_are_validated_before_they_are_called_best(tmp_path, monkeypatch, caplog):
    validation_values(monkeypatch, 90.0, 50.0)
    with caplog.at_level(logging.INFO, "gptask"):
        limits = {"max_steps": 5, "accelerator": "cpu", "accumulate_grad_batches": 1}
        run = train(small_config(tmp_path, trainer=limits))
    assert "best checkpoint: best-epoch=0-step=3.ckpt (val/accuracy 90.0000)" in caplog.text
    checkpoint = torch.load(run.folder / "checkpoints/best-epoch=0-step=3.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    validation_values(monkeypatch, 60.0, 60.0, 70.0)  # step 6, step 9, and step 10, at the new end
    longer = limits | {"max_steps": 10, "max_epochs": 50}
    train(small_config(tmp_path, resume=str(run.folder), trainer=longer))
    last = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    assert (last["global_step"], last["epoch"]) == (10, 3)
    assert [path.name for path in (run.folder / "checkpoints").glob("best-*.ckpt")] == ["best-epoch=0-step=3.ckpt"]


def test_a_longer_training_goes_on_with_the_schedule_to_the_new_end_and_says_so(tmp_path, monkeypatch, caplog):
    rates, step = [], GPTModule.training_step

    def training_step(self, *args):
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(GPTModule, "training_step", training_step)
    first = train(small_config(tmp_path))
    longer = {"max_epochs": 4, "accelerator": "cpu", "accumulate_grad_batches": 1}
    with caplog.at_level(logging.INFO, "gptask"):
        second = train(small_config(tmp_path, resume=str(first.folder), trainer=longer))
    assert second.folder == first.folder
    assert torch.load(first.folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12
    # of 12 steps the first warms up; then the rate falls by 1/11 a step
    assert rates[6:] == pytest.approx([1e-3 * (1 - (step - 1) / 11) for step in range(6, 12)])
    assert (
        "the training ends at step 12, no longer at 6: the learning rate goes on with 0.000545 at step 6" in caplog.text
    )
    values = read_config(first.folder)
    assert values["trainer"]["max_epochs"] == 4
    assert values["tuning"]["lr"] == 1e-3


@pytest.mark.long
def test_a_run_that_early_stopping_ended_trains_no_more_unless_its_patience_is_longer(tmp_path, monkeypatch):
    validation_values(monkeypatch, 50.0, 40.0, 30.0, 60.0)
    trainer = {"max_epochs": 4, "accelerator": "cpu", "accumulate_grad_batches": 1}
    impatient = small_config(tmp_path, trainer=trainer, early_stopping=EarlyStopping(patience=2))
    run = train(impatient)
    with pytest.raises(UserError, match=r"did not improve 2 times, and early_stopping\.patience=2 allows no more"):
        train(dataclasses.replace(impatient, resume=str(run.folder)))
    assert read_manifest(run.folder)
    train(dataclasses.replace(impatient, resume=str(run.folder), early_stopping=EarlyStopping(patience=3)))
    assert [path.name for path in (run.folder / "checkpoints").glob("best-*.ckpt")] == ["best-epoch=3-step=12.ckpt"]


def test_ctrl_c_that_lightning_fails_to_handle_is_ctrl_c(tmp_path, monkeypatch):
    def fit(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("Please call `iter(combined_loader)` first.")  # noqa: B904

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", fit)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 0"):
        train(small_config(tmp_path))

    def fail(*_, **__):
        raise RuntimeError("another")

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", fail)
    with pytest.raises(RuntimeError, match="another"):
        train(small_config(tmp_path))


def test_a_run_that_may_not_train_longer_is_refused_and_stays_as_it_is(tmp_path):
    run = train(small_config(tmp_path))
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    for epochs, message in [
        (2, "is finished after 2 epochs, and trainer.max_epochs=2 allows no more: set trainer.max_epochs above 2"),
        (1, "is finished after 2 epochs, and trainer.max_epochs=1 allows no more: set trainer.max_epochs above 2"),
    ]:
        options = {"max_epochs": epochs, "accelerator": "cpu", "accumulate_grad_batches": 1}
        with pytest.raises(UserError, match=message):
            train(small_config(tmp_path, resume=str(run.folder), trainer=options))
    (run.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"was stopped after 2 epochs, and trainer\.max_epochs=1 allows no more"):
        train(small_config(tmp_path, resume=str(run.folder), trainer=options))
    assert {path for path in run.folder.rglob("*") if path.is_file()} == {*files} - {run.folder / "manifest.json"}
    for path, content in files.items():
        assert path.name == "manifest.json" or path.read_bytes() == content


def test_a_run_that_lacks_its_test_only_is_finished_by_resume(tmp_path):
    run = train(small_config(tmp_path))
    expected, predictions = run.metrics["metrics"], (run.folder / "predictions.jsonl").read_bytes()
    (run.folder / "manifest.json").unlink()
    again = train(small_config(tmp_path, resume=str(run.folder)))
    read_manifest(again.folder).verify()
    assert again.metrics["metrics"] == expected
    assert (again.folder / "predictions.jsonl").read_bytes() == predictions


def test_a_finished_run_without_checkpoints_stays_as_it_is(tmp_path):
    folder = write_review_run(tmp_path / "run")
    with pytest.raises(UserError, match="is finished and has no checkpoint to go on from"):
        train(small_config(tmp_path, resume=str(folder)))
    read_manifest(folder).verify()


def test_a_run_that_is_stopped_before_its_last_file_is_unfinished(tmp_path, monkeypatch):
    config = small_config(tmp_path, folder=str(tmp_path / "run"), trainer={"max_epochs": 1, "accelerator": "cpu"})
    longer = small_config(tmp_path, resume=str(tmp_path / "run"), trainer={"max_epochs": 2, "accelerator": "cpu"})

    def stop(*_):
        raise RuntimeError("stopped")

    for settings in (config, longer):  # the second goes on with a finished run
        with monkeypatch.context() as changed:
            changed.setattr("gptask.training.results.write_card", stop)
            with pytest.raises(RuntimeError, match="stopped"):
                train(settings)
        assert (tmp_path / "run/metrics.json").exists()
        assert not (tmp_path / "run/manifest.json").exists()
        with pytest.raises(UserError, match=f"unfinished.*finish it with: gptask train resume={tmp_path}/run"):
            load_run(tmp_path / "run")
        assert read_run(tmp_path / "run").problem.startswith("unfinished")
        train(dataclasses.replace(settings, folder=None, resume=str(tmp_path / "run")))
        read_manifest(tmp_path / "run").verify()


def test_ctrl_c_writes_a_checkpoint_and_names_the_command_that_resumes(tmp_path):
    task = Sentiment()
    endless = small_config(
        tmp_path, task=task, folder=str(tmp_path / "run"), trainer={"max_epochs": 500, "accelerator": "cpu"}
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores SIGINT

    def interrupt():
        while not (tmp_path / "run/checkpoints/last.ckpt").exists() and alive.is_set():
            threading.Event().wait(0.05)
        signal.raise_signal(signal.SIGINT) if alive.is_set() else None

    alive = threading.Event()
    alive.set()
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt, match=r"interrupted\.ckpt.*gptask train resume="):
            train(endless)
    finally:
        alive.clear()
        thread.join()
        signal.signal(signal.SIGINT, before)
    checkpoint = torch.load(tmp_path / "run/checkpoints/interrupted.ckpt", weights_only=True)
    longer = {"max_epochs": checkpoint["epoch"] + 2, "accelerator": "cpu"}
    resumed = train(small_config(tmp_path, task=task, resume=str(tmp_path / "run"), trainer=longer))
    assert resumed.metrics["n"] == 10
    assert not (tmp_path / "run/checkpoints/interrupted.ckpt").exists()


def test_ctrl_c_during_validation_keeps_the_epoch_before_it(tmp_path, monkeypatch):
    validation_step = GPTModule.validation_step

    def interrupted_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        validation_step(self, batch, batch_idx)

    monkeypatch.setattr(GPTModule, "validation_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted\.ckpt"):
        train(small_config(tmp_path, folder=str(tmp_path / "run")))
    monkeypatch.setattr(GPTModule, "validation_step", validation_step)
    assert torch.load(tmp_path / "run/checkpoints/interrupted.ckpt", weights_only=True)["global_step"] == 6
    longer = {"max_epochs": 3, "accelerator": "cpu"}
    resumed = train(small_config(tmp_path, resume=str(tmp_path / "run"), trainer=longer))
    assert resumed.metrics["n"] == 10


def test_a_run_whose_task_fails_to_save_its_files_resumes(tmp_path, monkeypatch):
    def save_assets(task, folder):
        raise KeyError("words")

    config = small_config(tmp_path, folder=str(tmp_path / "run"))
    monkeypatch.setattr(Sentiment, "save_assets", save_assets)
    with pytest.raises(UserError, match=r"save_assets\(\) fails") as error:
        train(config)
    monkeypatch.undo()
    assert str(error.value).splitlines()[-2:] == ["KeyError: 'words'", resume_hint(tmp_path / "run")]
    assert not (tmp_path / "run/model").exists()
    resumed = train(small_config(tmp_path, resume=str(tmp_path / "run")))
    assert resumed.metrics["n"] == 10
    assert load_run(resumed.folder)


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path, monkeypatch):
    torch_save, calls = torch.save, []

    def save_until_the_disk_is_full(value, target, *args, **kwargs):
        calls.append(1)
        if len(calls) > 2:  # best and last of the first epoch are written
            raise OSError(errno.ENOSPC, "No space left on device")
        return torch_save(value, target, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save_until_the_disk_is_full)
    with pytest.raises(UserError, match=r"No space left on device.*last\.ckpt.*resume="):
        train(small_config(tmp_path, folder=str(tmp_path / "run")))
    monkeypatch.undo()
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] > 0
