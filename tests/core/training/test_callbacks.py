"""Progress as lines of the log."""

import logging
import re

from gptask import train
from gptask.config.schemas import Schedule, ScheduleName
from gptask.training.callbacks import LineProgress

from tests.support.configs import small_config


def test_the_first_step_is_logged_at_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gptask.training.trainer.progress_bar", lambda: LineProgress(every=1e9))
    with caplog.at_level(logging.INFO, "gptask"):
        train(small_config(tmp_path))
    assert re.findall(r"step (\d)/6 loss", caplog.text) == ["1"]


def test_lines_show_loss_speed_and_time_left(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gptask.training.trainer.progress_bar", lambda: LineProgress(every=0))
    with caplog.at_level(logging.INFO, "gptask"):
        train(small_config(tmp_path))
        endless = {"max_epochs": -1, "max_time": "00:00:00:01", "accelerator": "cpu"}
        train(small_config(tmp_path, trainer=endless, schedule=Schedule(ScheduleName.constant, warmup=0)))
    assert re.search(r"epoch 2 step 4/6 loss \d\.\d{4} \d+ tokens/s, 0:00:0\d left", caplog.text)
    assert re.search(r"epoch 2 step 6 val/loss \S+ val/accuracy", caplog.text)
    assert re.search(r"step 4/inf .* \? left", caplog.text)
