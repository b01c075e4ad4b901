"""A training that is stopped anywhere and goes on ends with the weights, metrics and predictions of one that is not."""

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gptask import train
from gptask.config.schemas import (
    DType,
    EarlyStopping,
    Full,
    HeadOnly,
    Limit,
    Lora,
    Mixing,
    Pretrained,
    Sample,
    Scratch,
    TaskConfig,
    Train,
)
from gptask.data.datamodule import DataModule
from gptask.training.module import GPTModule
from gptask.training.resume_point import _as_tensors, random_states, restore_random_states, rewind
from gptask.training.train import train_tasks
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config

TIMES = ("wall_seconds", "fit_seconds", "train_tokens_per_second", "peak_memory_mb", "fingerprint", "git_commit")
DROPOUT = Scratch(n_layer=1, n_head=2, n_embd=16, context=128, vocab_size=300, dropout=0.3)


class Kill(Exception):
    """Stands for the end of the process: nothing is written after it."""


def configure(outputs: Path, trainer: dict[str, Any] | None = None, **changes: Any) -> Train:
    """Five batches an epoch, with dropout, and a learning rate that changes weights visibly."""
    settings = {"max_epochs": 2, "accelerator": "cpu", "accumulate_grad_batches": 1, "gradient_clip_val": 1.0}
    data = Sample(limit=Limit(train=40, validation=8, test=10), max_tokens=128, batch_size=8)
    options = {"backbone": DROPOUT, "tuning": Full(lr=3e-3), "data": data} | changes
    return small_config(outputs, trainer=settings | (trainer or {}), **options)


def outcome(folder: Path) -> dict[str, Any]:
    """Weights, metrics and predictions of a run and of its tasks, without what takes another value each time."""
    metrics = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("metrics.json")}
    return {
        "weights": {path.name: path.read_bytes() for path in sorted((folder / "model").rglob("*.safetensors"))},
        "predictions": {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("predictions.jsonl")},
        "metrics": {
            name: {key: value for key, value in result.items() if key not in TIMES} for name, result in metrics.items()
        },
    }


def stop_at(changed: pytest.MonkeyPatch, hook: str, call: int, error: type[BaseException], after: bool = False) -> None:
    """Raise an error in the n-th call of a method of the module, at its start or its end."""
    original, calls = getattr(GPTModule, hook), []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            raise error
        result = original(self, *args, **kwargs)
        if len(calls) == call:
            raise error
        return result

    changed.setattr(GPTModule, hook, stopping)


def stop_and_resume(config: Train, folder: Path, monkeypatch: pytest.MonkeyPatch, *stop: Any) -> dict[str, Any]:
    with monkeypatch.context() as changed:
        stop_at(changed, *stop)
        with pytest.raises((KeyboardInterrupt, Kill)):
            train_tasks(replace(config, folder=str(folder)))
    return outcome(train_tasks(replace(config, resume=str(folder))).folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """``whole(accumulate_grad_batches=2)``: the outcome of a training that is not stopped, made once."""
    outcomes: dict[str, dict[str, Any]] = {}

    def train_once(trainer: dict[str, Any]) -> dict[str, Any]:
        key = repr(trainer)
        if key not in outcomes:
            outcomes[key] = outcome(train(configure(tmp_path_factory.mktemp("whole"), trainer)).folder)
        return outcomes[key]

    return train_once


ACCUMULATED = {"accumulate_grad_batches": 2, "val_check_interval": 4, "max_epochs": 3, "max_steps": 8}
STOPS = {
    "ctrl-c between accumulated batches": (ACCUMULATED, ("training_step", 9, KeyboardInterrupt)),
    "a kill behind a validation": (ACCUMULATED, ("training_step", 6, Kill)),
}
MORE_STOPS = {
    "ctrl-c in the first epoch": ({}, ("training_step", 3, KeyboardInterrupt)),
    "ctrl-c in a later epoch": ({}, ("training_step", 9, KeyboardInterrupt, True)),
    "ctrl-c in the first batch of an epoch": ({}, ("training_step", 6, KeyboardInterrupt)),
    "ctrl-c in validation": ({}, ("validation_step", 1, KeyboardInterrupt)),
    "ctrl-c behind validation": ({}, ("on_validation_epoch_end", 1, KeyboardInterrupt, True)),
    "a kill at the last validation of an epoch": ({"val_check_interval": 5}, ("training_step", 6, Kill)),
    "a kill in the second epoch": ({"val_check_interval": 0.5}, ("training_step", 9, Kill)),
    "ctrl-c with a limit of steps": ({"max_steps": 8}, ("training_step", 7, KeyboardInterrupt)),
    "ctrl-c in the validation of the last step": ({"max_steps": 8}, ("validation_step", 2, KeyboardInterrupt)),
    "ctrl-c in validation at the end": ({"val_check_interval": 3}, ("validation_step", 4, KeyboardInterrupt)),
    "a kill with limits of epochs and steps": ({"max_epochs": 3, "max_steps": 12}, ("training_step", 6, Kill)),
    "batches over epochs": ({"val_check_interval": 3, "check_val_every_n_epoch": None}, ("training_step", 8, Kill)),
    "every second epoch": (
        {"check_val_every_n_epoch": 2, "max_epochs": 4}, ("validation_step", 1, KeyboardInterrupt)
    ),
    "a share of the batches": ({"limit_train_batches": 3}, ("training_step", 5, KeyboardInterrupt)),
    "the same batches in every epoch": (
        {"reload_dataloaders_every_n_epochs": 0, "max_epochs": 3}, ("training_step", 8, KeyboardInterrupt)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*STOPS, *(pytest.param(name, marks=pytest.mark.long) for name in MORE_STOPS)])
def test_a_stopped_training_ends_as_one_that_is_not_stopped(name, whole, tmp_path, monkeypatch):
    trainer, stop = (STOPS | MORE_STOPS)[name]
    assert stop_and_resume(configure(tmp_path, trainer), tmp_path / "run", monkeypatch, *stop) == whole(trainer)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["workers", "lora", "lower layers cached", "final states cached", "early stopping"])
def test_so_do_other_kinds_of_training(kind, tiny_model, tmp_path, monkeypatch):
    pretrained = Pretrained(source=str(tiny_model("llama", 128, layers=4)), dtype=DType.float32)
    sample = Sample(limit=Limit(train=40, validation=8, test=10), max_tokens=128, batch_size=8, workers=2)
    changes: dict[str, Any] = {
        "workers": {"data": sample},
        "lora": {"backbone": pretrained, "tuning": Lora(rank=2, dropout=0.3, lr=1e-2)},
        "lower layers cached": {"backbone": pretrained, "tuning": Lora(rank=2, top=0.5, lr=1e-2)},
        "final states cached": {"backbone": pretrained, "tuning": HeadOnly()},
        "early stopping": {"early_stopping": EarlyStopping(patience=2), "trainer": {"max_epochs": 9}},
    }[kind]
    config = configure(tmp_path, **changes)
    expected = outcome(train(config).folder)
    assert stop_and_resume(config, tmp_path / "run", monkeypatch, "training_step", 8, KeyboardInterrupt) == expected


@pytest.mark.long
@pytest.mark.parametrize("call", [3, 9])
def test_so_do_several_tasks(call, tmp_path, monkeypatch):
    data = Sample(limit=Limit(train=40, validation=8, test=10), max_tokens=128, batch_size=8)
    few = replace(data, limit=Limit(train=10, validation=8, test=10))  # passed through several times an epoch
    config = configure(tmp_path, {"accumulate_grad_batches": 2}, mixing=Mixing())
    tasks = {"mood": TaskConfig(Sentiment(), data), "topic": TaskConfig(Classification(), few)}
    config = replace(config, task=None, data=None, tasks=tasks)
    expected = outcome(train_tasks(config).folder)
    assert len(expected["predictions"]) == 2
    stopped = stop_and_resume(config, tmp_path / "run", monkeypatch, "training_step", call, KeyboardInterrupt)
    assert stopped == expected


class OwnLoader:
    """A plugin's data loader: all batches of an epoch in their order."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class StatefulLoader(OwnLoader):
    """One that knows how many batches it gave."""

    given = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches[self.given :]:
            self.given += 1
            yield batch
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


@pytest.mark.parametrize(
    ("loader", "resumed"),
    [(OwnLoader, [1, 2, 3, 4, 5]), pytest.param(StatefulLoader, [3, 4, 5], marks=pytest.mark.long)],
)
def test_a_plugins_own_loader_begins_the_epoch_anew_unless_it_has_a_state(
    loader, resumed, tmp_path, monkeypatch, caplog
):
    make, step, drawn = DataModule.train_dataloader, GPTModule.training_step, []
    monkeypatch.setattr(DataModule, "train_dataloader", lambda self: loader(list(make(self))))

    def noted_step(self: Any, batch: Any, number: int) -> Any:
        drawn.append([one.rows for one in trainer_loader(self).batches].index(batch.rows) + 1)
        return step(self, batch, number)

    def trainer_loader(module: Any) -> Any:
        return module.trainer.train_dataloader

    monkeypatch.setattr(GPTModule, "training_step", noted_step)
    config = configure(tmp_path, {"max_epochs": 1})
    with monkeypatch.context() as changed:
        stop_at(changed, "training_step", 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, folder=str(tmp_path / "run")))
    assert drawn == [1, 2]
    drawn.clear()
    # the plugin's own loader may not leave batches out for us
    monkeypatch.setattr(
        DataModule, "resumed_at", property(lambda self: (0, 0), lambda self, value: None), raising=False
    )
    with caplog.at_level(logging.WARNING, "gptask"):
        train(replace(config, resume=str(tmp_path / "run")))
    assert drawn == resumed
    warning = "(OwnLoader) has no state_dict(), so epoch 1 begins anew, and 2 of its batches are trained on twice"
    assert (warning in caplog.text) == (loader is OwnLoader)


def test_random_states_are_tensors_and_plain_numbers_and_give_the_same_numbers_again(tmp_path):
    def draw() -> list[Any]:
        numbers = [random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal()]
        return [*numbers, *torch.rand(3).tolist()]

    device = torch.device("cpu")
    draw()
    torch.save(_as_tensors(random_states(device)), tmp_path / "states.pt")
    numbers = draw()
    draw()
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True), device)
    assert draw() == numbers


def loops(started: int, processed: int, steps: int, ready: int, trained: int, last: bool = False) -> dict[str, Any]:
    """The state of Lightning's fit loop in a checkpoint: batches of this epoch, behind 10 of earlier ones."""
    counts = {"ready": started, "started": started, "processed": processed, "completed": processed}
    current = {"ready": ready, "started": ready, "processed": trained, "completed": trained}
    zero = dict.fromkeys(current, 0)
    return {
        "state_dict": {"combined_loader": [{}]},
        "epoch_progress": {"current": dict(counts), "total": dict(counts)},
        "epoch_loop.batch_progress": {
            "current": current, "total": {name: value + 10 for name, value in current.items()}, "is_last_batch": last
        },
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": {"current": {"completed": steps, "ready": steps}}}
        },
        "epoch_loop.val_loop.batch_progress": {"current": dict(zero), "total": dict(zero)},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "accumulate", "ratio", "expected", "total"),
    [
        (loops(3, 2, 4, 5, 4), 1, 1, (2, 4), 14),  # in the fifth batch
        (loops(3, 2, 2, 7, 6), 3, 1, (2, 6), 16),  # in the first batch of an accumulation
        (loops(3, 2, 2, 9, 8), 3, 1, (2, 6), 16),  # in the last
        (loops(3, 2, 5, 5, 4), 1, 1, (2, 5), 15),  # behind the fifth step, which is not counted as a batch yet
        (loops(3, 2, 0, 2, 1), 3, 1, (2, 0), 10),  # before the first step
        (loops(3, 2, 3, 7, 7, last=True), 3, 1, (2, 7), 17),  # all is trained, and not validated yet
        (loops(3, 3, 3, 7, 7, last=True), 3, 1, (3, 0), 17),  # between two epochs
        (loops(3, 2, 2, 8, 8), 2, 0.5, (2, 4), 9),  # on two devices instead of one
        (loops(0, 0, 0, 0, 0), 1, 1, (0, 0), 10),
    ],
)
def test_counters_are_set_to_the_last_optimizer_step(state, accumulate, ratio, expected, total):
    assert rewind(state, accumulate, ratio, validated=True) == expected
    epoch, done = expected
    assert set(state["epoch_loop.batch_progress"]["current"].values()) == {done}
    assert set(state["epoch_loop.batch_progress"]["total"].values()) == {total}
    assert state["epoch_progress"]["current"] == {
        "ready": epoch + (done > 0), "started": epoch + (done > 0), "processed": epoch, "completed": epoch
    }  # fmt: skip
    assert ("combined_loader" in state["state_dict"]) == (done > 0)


SCRIPT = """
import json, os, sys
from dataclasses import replace
sys.path.insert(0, {root!r})
from pathlib import Path
from gptask import train
from gptask.training.module import GPTModule
from tests.core.training.test_resume_point import configure

step, calls, stop = GPTModule.training_step, [], int(os.environ.get("STOP_AT", 0))

def training_step(self, *args):
    calls.append(1)
    if len(calls) == stop:
        os.kill(os.getpid(), 9)
    return step(self, *args)

GPTModule.training_step = training_step
config = configure(Path({outputs!r}), {trainer!r})
if __name__ == "__main__":
    train(replace(config, **json.loads(os.environ["CHANGES"])))
"""


def run_script(tmp_path: Path, trainer: dict[str, Any], stop: int = 0, **changes: Any) -> int:
    script = tmp_path / "script.py"
    root = str(Path(__file__).parents[3])
    script.write_text(SCRIPT.format(root=root, outputs=str(tmp_path), trainer=trainer))
    variables = os.environ | {"STOP_AT": str(stop), "CHANGES": json.dumps(changes)}
    return subprocess.run([sys.executable, str(script)], env=variables, timeout=300, check=False).returncode


@pytest.mark.long
@pytest.mark.parametrize(
    "trainer",
    [
        {"val_check_interval": 2},
        {"val_check_interval": 1, "devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2},
    ],
    ids=["one process", "two processes"],
)
def test_a_killed_process_goes_on_from_the_last_validation(trainer, tmp_path):
    assert run_script(tmp_path, trainer, folder=str(tmp_path / "whole")) == 0
    assert run_script(tmp_path, trainer, stop=4 if "devices" in trainer else 9, folder=str(tmp_path / "run")) != 0
    time.sleep(1)
    assert not (tmp_path / "run/manifest.json").exists()
    assert run_script(tmp_path, trainer, resume=str(tmp_path / "run")) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
