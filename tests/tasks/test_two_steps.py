"""Every built-in task trains two steps on its bundled sample, from the command line."""

import json

import pytest
from gptask.cli import main
from gptask.plugins.discovery import discover

TINY = "backbone=nano backbone.n_layer=1 backbone.n_head=2 backbone.n_embd=16 data.limit.test=4 trainer.accelerator=cpu"


@pytest.mark.parametrize("name", list(discover()))
def test_a_task_trains_two_steps_on_its_sample(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", f"task={name}", *TINY.split(), "trainer.max_steps=2", f"folder={tmp_path / 'run'}"])
    assert stop.value.code == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["task"] == name
    assert metrics["n"] == 4
    assert next(iter(metrics["metrics"])) in capsys.readouterr().out
