"""When checkpoints are written, and what is left where a training is stopped or its time is over."""

import logging
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gptask import UserError, train
from gptask.config.schemas import Checkpoint
from gptask.errors import Terminated
from gptask.runs.manifest import read_manifest
from gptask.training.checkpoint_files import write_checkpoint
from gptask.training.checkpoints import BestCheckpoint, TimedCheckpoint
from gptask.training.module import GPTModule
from pytorch_lightning.callbacks import Timer

from tests.core.training.test_resume_point import ACCUMULATED, Kill, configure, outcome, stop_at
from tests.support.configs import small_config

ONE_EPOCH = {"max_epochs": 1, "accelerator": "cpu", "accumulate_grad_batches": 1}


pytestmark = pytest.mark.usefixtures("usual_handlers")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """The outcome of a training that is not stopped."""
    return outcome(train(configure(tmp_path_factory.mktemp("whole"), ACCUMULATED)).folder)


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_a_killed_training_goes_on_within_the_epoch(whole, tmp_path, monkeypatch):
    config = configure(tmp_path, ACCUMULATED, checkpoint=Checkpoint(minutes=0))
    with monkeypatch.context() as changed:
        stop_at(changed, "training_step", 13, Kill)
        with pytest.raises(Kill):
            train(replace(config, folder=str(tmp_path / "run")))
    timed = {name for name in files(tmp_path / "run") if name.startswith("timed")}
    assert timed == {"timed-step=6.ckpt", "timed-step=7.ckpt"}
    (tmp_path / "run/checkpoints/timed-step=9.ckpt").write_bytes(b"of a training that was given up")
    assert outcome(train(replace(config, resume=str(tmp_path / "run"))).folder) == whole
    left = {name for name in files(tmp_path / "run") if not name.startswith("best")}
    assert left == {"last.ckpt"}


def test_sigterm_within_an_optimizer_step_waits_for_its_end_and_another_signal_does_not_spoil_the_file(
    whole, tmp_path, monkeypatch
):
    step, calls = torch.optim.AdamW.step, []

    def interrupted_step(self, closure=None):
        calls.append(1)
        loss = closure()
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        step(self)
        return loss

    def interrupted_write(checkpoint, path):
        for number in (signal.SIGINT, signal.SIGTERM) if path.name == "interrupted.ckpt" else ():
            signal.raise_signal(number)
        write_checkpoint(checkpoint, path)

    config = configure(tmp_path, ACCUMULATED)
    with monkeypatch.context() as changed:
        changed.setattr(torch.optim.AdamW, "step", interrupted_step)
        changed.setattr("gptask.training.checkpoints.write_checkpoint", interrupted_write)
        with pytest.raises(Terminated, match=r"stopped by SIGTERM at step 3\. .*interrupted\.ckpt.* resume="):
            train(replace(config, folder=str(tmp_path / "run")))
    assert torch.load(tmp_path / "run/checkpoints/interrupted.ckpt", weights_only=True)["global_step"] == 3
    assert outcome(train(replace(config, resume=str(tmp_path / "run"))).folder) == whole


def test_ctrl_c_while_the_best_checkpoint_is_written_comes_once_it_is_there(tmp_path, monkeypatch):
    def interrupted_write(checkpoint, path):
        if path.name.startswith("best"):
            signal.raise_signal(signal.SIGINT)
        write_checkpoint(checkpoint, path)

    monkeypatch.setattr("gptask.training.checkpoints.write_checkpoint", interrupted_write)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        train(small_config(tmp_path, folder=str(tmp_path / "run"), trainer=ONE_EPOCH))
    assert files(tmp_path / "run") == {"best-epoch=0-step=3.ckpt", "last.ckpt", "interrupted.ckpt"}


def test_a_stop_in_the_test_says_how_to_go_on_and_then_only_the_test_is_made(tmp_path, monkeypatch):
    config = small_config(tmp_path, folder=str(tmp_path / "run"), trainer=ONE_EPOCH)
    with monkeypatch.context() as changed:
        stop_at(changed, "test_step", 1, Terminated)
        with pytest.raises(Terminated, match=rf"stopped\. .*last\.ckpt.*gptask train resume={tmp_path}/run"):
            train(config)
    assert files(tmp_path / "run") == {"best-epoch=0-step=3.ckpt", "last.ckpt"}
    monkeypatch.setattr(GPTModule, "training_step", lambda *_: pytest.fail("trained"))
    assert train(replace(config, folder=None, resume=str(tmp_path / "run"))).metrics["n"] == 10


@pytest.mark.parametrize("phase", ["gptask.data.corpus.CachedCorpus.fingerprint", "gptask.training.train.build_module"])
def test_a_stop_before_the_training_says_that_nothing_is_there_to_go_on_from(phase, tmp_path, monkeypatch):
    def stop(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(phase, stop)
    with pytest.raises(Terminated) as stopped:
        train(small_config(tmp_path, folder=str(tmp_path / "run")))
    assert re.fullmatch(
        "stopped by SIGTERM. (Nothing|No checkpoint).* written yet: the same command begins again.", str(stopped.value)
    )
    assert not (tmp_path / "run").exists()


def time_is_over_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes with the n-th batch that is trained on."""
    step, calls, elapsed = GPTModule.training_step, [], Timer.time_elapsed

    def training_step(self, *args):
        calls.append(1)
        return step(self, *args)

    monkeypatch.setattr(GPTModule, "training_step", training_step)
    monkeypatch.setattr(Timer, "time_elapsed", lambda *args: elapsed(*args) + 60 * (len(calls) >= steps))


def test_max_time_validates_where_it_stops_and_ends_with_a_finished_run(tmp_path, monkeypatch, caplog):
    limits = ONE_EPOCH | {"max_epochs": 8, "max_time": "00:00:00:50", "check_val_every_n_epoch": 2}
    with monkeypatch.context() as changed, caplog.at_level(logging.INFO, "gptask"):
        time_is_over_after(2, changed)
        run = train(small_config(tmp_path, trainer=limits))
    read_manifest(run.folder).verify()
    assert "best checkpoint: best-epoch=0-step=2.ckpt (val/accuracy" in caplog.text
    with pytest.raises(UserError, match=r"finished after 60 seconds of training, and trainer\.max_time=00:00:00:50"):
        train(small_config(tmp_path, trainer=limits, resume=str(run.folder)))


@pytest.mark.long
def test_a_run_whose_time_is_over_when_it_goes_on_is_validated_first(tmp_path, monkeypatch, caplog):
    limits = ONE_EPOCH | {"max_epochs": 8, "max_time": "00:00:00:50"}
    config = small_config(tmp_path, folder=str(tmp_path / "run"), trainer=limits)
    with monkeypatch.context() as changed:
        stop_at(changed, "training_step", 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    with monkeypatch.context() as changed, caplog.at_level(logging.INFO, "gptask"):
        time_is_over_after(0, changed)
        changed.setattr(GPTModule, "training_step", lambda *_: pytest.fail("trained"))
        run = train(replace(config, folder=None, resume=str(tmp_path / "run")))
    read_manifest(run.folder).verify()
    assert "best checkpoint: best-epoch=0-step=2.ckpt (val/accuracy" in caplog.text
    assert torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_several_processes_agree_only_a_few_times_whether_it_is_time():
    timed, asked, step = TimedCheckpoint(Path(), minutes=15), 0, 0
    while not timed._is_due(now=0.1 * step):  # of 9000 steps a tenth of a second each
        step += timed._steps_to_wait(0.1 * step, step, processes=2)
        asked += 1
    assert step in range(9000, 9003)
    assert asked < 30
    assert timed._steps_to_wait(now=0.1, step=1, processes=1) == 1


def test_a_best_checkpoint_that_is_lost_counts_as_never_written(tmp_path):
    options: dict[str, Any] = {"filename": "best-{epoch}-{step}", "monitor": "val/accuracy", "mode": "max"}
    best = BestCheckpoint(tmp_path, **options)
    best.best_model_path = best.kth_best_model_path = str(tmp_path / "best-epoch=1-step=6.ckpt")
    best.kth_value = best.best_model_score = torch.tensor(90.0)
    best.best_k_models = {best.best_model_path: best.kth_value}
    state = best.state_dict()
    write_checkpoint({"callbacks": {}}, Path(best.best_model_path))
    there, lost = BestCheckpoint(tmp_path, **options), BestCheckpoint(tmp_path, **options)
    there.load_state_dict(dict(state))
    Path(best.best_model_path).write_bytes(b"damaged")
    lost.load_state_dict(dict(state))
    assert there.state_dict() == state
    assert lost.state_dict() == BestCheckpoint(tmp_path, **options).state_dict()


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_minutes_below_zero_are_refused(minutes, tmp_path):
    with pytest.raises(UserError, match=r"checkpoint\.minutes=.*expected minutes"):
        train(small_config(tmp_path, checkpoint=Checkpoint(minutes=minutes)))
