"""A checkpoint that loads but is not what a training saves is refused by name, before and while it is restored."""

import copy

import pytest
import torch
from gptask import train
from gptask.errors import UserError
from gptask.training.checkpoint_content import restoring, wrong_content

from tests.support.configs import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(
        small_config(tmp_path_factory.mktemp("outputs"), trainer={"max_epochs": 1, "accelerator": "cpu"})
    ).folder


@pytest.fixture
def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_checkpoint_of_a_training_is_accepted(checkpoint):
    assert wrong_content(checkpoint) == ""


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        (["global_step"], None, "global_step is 'None'"),
        (["global_step"], -1, "global_step -1"),
        (["loops"], 3, "loops is '3'"),
        (["loops", "fit_loop", "epoch_progress", "current"], {}, "no ready"),
        (["loops", "fit_loop", "epoch_loop.batch_progress", "is_last_batch"], "x", "is_last_batch is 'x'"),
        (["callbacks"], [], "callbacks is"),
        (["gptask"], [], "gptask: not a mapping"),
        (["gptask", "record"], None, "record is 'None'"),
        (["gptask", "record", "world_size"], 0, "world_size is 0"),
        (["gptask", "record", "config", "trainer"], None, "trainer is 'None'"),
        (["gptask", "random_states"], {}, "random_states is"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(checkpoint, path, value, wrong):
    holder = checkpoint = copy.copy(checkpoint)
    for name in path[:-1]:
        holder[name] = copy.copy(holder[name])
        holder = holder[name]
    holder[path[-1]] = value
    assert wrong in wrong_content(checkpoint)


def test_what_lightning_cant_restore_names_the_checkpoint(run, checkpoint):
    for path in (run / "checkpoints").glob("*.ckpt"):
        torch.save(checkpoint | {"optimizer_states": [{"state": 3, "param_groups": []}]}, path)
    config = small_config(run.parent, resume=str(run), trainer={"max_epochs": 2, "accelerator": "cpu"})
    with pytest.raises(UserError, match=r"\.ckpt is damaged, it can't be restored"):
        train(config)


def test_an_error_elsewhere_keeps_its_class():
    with pytest.raises(ZeroDivisionError), restoring("x.ckpt"):
        raise ZeroDivisionError
